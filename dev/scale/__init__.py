"""How the job grows: measurements of memory, speed, many units, layouts and bitext. Not part of the package."""
