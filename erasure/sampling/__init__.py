"""Images drawn from models into folders, resumable."""
