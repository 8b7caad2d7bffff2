"""`edgeclip serve`: the HTTP service on one bundle."""

import argparse
import os
import sys

from edgeclip.serve.run import serve, with_key_file
from edgeclip.serve.settings import add_settings, describe_settings, read_settings, unknown_variables
from edgeclip.tables import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Serve until a signal comes; or print every setting, and where it is from."""
    for warning in unknown_variables(os.environ):
        print(f"edgeclip: {warning}", file=sys.stderr)
    settings, sources = read_settings(vars(options), os.environ, needs_bundle=not options.print_config)
    if options.print_config:
        print(format_table(("variable", "flag", "value", "from"), describe_settings(settings, sources)))
        return
    serve(with_key_file(settings))
