"""``python -m secondsite`` is the ``secondsite`` command."""

import sys

from secondsite.cli.main import main

sys.exit(main())
