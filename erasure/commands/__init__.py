"""The verbs, a file each: it reads its flags, calls the library, and says how its result is shown.

torch and the model libraries are imported by the verb that needs them.
"""
