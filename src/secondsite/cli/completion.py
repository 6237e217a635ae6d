"""``secondsite completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import sys
from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the completion script for a shell.

    For example:

        secondsite completion bash > /etc/bash_completion.d/secondsite

        secondsite completion zsh > "${fpath[1]}/_secondsite"

        secondsite completion fish > ~/.config/fish/completions/secondsite.fish

    Parameters
    ----------
    shell
        Which shell.
    """
    from secondsite.cli.main import build_app

    script = build_app().generate_completion(prog_name="secondsite", shell=shell)
    sys.stdout.write(script if script.endswith("\n") else script + "\n")
