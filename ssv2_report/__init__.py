__version__ = "0.1.0"

import sys

# For nbformat, jsonschema would compile the grammar of internationalised addresses, which no notebook
# has: 1.4 of the 2 seconds in which a job's own process starts.
sys.modules.setdefault("rfc3987_syntax", None)
