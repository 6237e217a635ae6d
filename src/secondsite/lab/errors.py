"""What can go wrong in the lab, as sentences for the person at the terminal."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class LabNeedsRoot(SecondsiteError):
    """Namespaces and a private libvirt need root."""

    code = "lab.needs-root"
    outcome = Outcome.REFUSED
    happened = "The lab cannot be started by user id {uid}."
    cause = "Network and mount namespaces and a private libvirt need root."
    action = "Run it with sudo."


class LabToolMissing(SecondsiteError):
    """A program or file that installation provides is absent."""

    code = "lab.tool-missing"
    outcome = Outcome.REFUSED
    happened = "{what} is not on this machine."
    cause = "The Debian packages of the lab are not all installed."
    action = "Run ./run install, which installs them."


class LabCommandFailed(SecondsiteError):
    """A command of the lab's set-up failed."""

    code = "lab.command-failed"
    outcome = Outcome.FAILED
    happened = "`{command}` failed with exit code {exit_code}: {output}"
    cause = "The machine refuses what the lab needs (namespaces, mounts, bridges), or a package is damaged."
    action = "Read the output above; `secondsite lab down` removes what the lab started."


class LabTimeout(SecondsiteError):
    """Something of the lab did not come up in time."""

    code = "lab.timeout"
    outcome = Outcome.FAILED
    happened = "Waited {seconds:.0f} s in vain for {what}. {evidence}"
    cause = "The machine is very slow or out of memory, or a process of the lab died."
    action = "Look at the logs under {root}, then run `secondsite lab down` and try again."


class LabExists(SecondsiteError):
    """A lab already runs from this directory."""

    code = "lab.exists"
    outcome = Outcome.REFUSED
    happened = "A lab already runs from {root}."
    cause = "`secondsite lab up` was run before."
    action = "Use it, or remove it with `secondsite lab down` first."


class LabRootForeign(SecondsiteError):
    """The directory is not a lab's."""

    code = "lab.root-foreign"
    outcome = Outcome.REFUSED
    happened = "{root} was left as it is: {why}."
    cause = "Another directory was meant, or somebody made one of this name before."
    action = "Name another directory with --root, or look at what is in this one and remove it yourself."


class LabAbsent(SecondsiteError):
    """There is no lab in this directory."""

    code = "lab.absent"
    outcome = Outcome.NOT_FOUND
    happened = "No lab runs from {root}."
    cause = "It was not started, or it was removed."
    action = "Start one with `secondsite lab up`."


class LabProofFailed(SecondsiteError):
    """The lab's own check of the recovered data failed: a fault of secondsite."""

    code = "lab.proof-failed"
    outcome = Outcome.DAMAGED
    happened = "The proof of point {point} failed: {why}"
    cause = "A fault of secondsite: the recovered disks are not what the source held at that instant."
    action = "Keep the output and report it."
