"""HTML reports of runs, and their templates."""
