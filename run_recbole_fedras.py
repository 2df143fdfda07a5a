"""Train a RecBole model federatedly: ``python run_recbole_fedras.py --help``."""

import sys

from recbole_fedras.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
