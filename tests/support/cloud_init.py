"""Run by cloud-init's own interpreter: what real cloud-init makes of a seed. Prints JSON.

Arguments: a directory with `user-data`, `meta-data` and `network-config`; a directory for what it writes; the
cloud.cfg of the distribution.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from cloudinit import helpers, util
from cloudinit.cmd.devel import net_convert
from cloudinit.config.schema import SchemaValidationError, get_schema, validate_cloudconfig_file
from cloudinit.distros import fetch
from cloudinit.sources import DataSourceNoCloud

SECTIONS = ("cloud_init_modules", "cloud_config_modules", "cloud_final_modules")
RENDERERS = {
    "eni": "debian",
    "netplan": "ubuntu",
    "networkd": "debian",
    "network-manager": "rhel",
    "sysconfig": "rhel",
}


def rendered(seed: Path, out: Path) -> dict[str, dict[str, str]]:
    """Renderer -> path -> text, as the command `cloud-init devel net-convert` writes them."""
    found = {}
    for renderer, distribution in RENDERERS.items():
        place = out / renderer
        options = ["-p", str(seed / "network-config"), "-k", "yaml", "-d", str(place)]
        parsed = net_convert.get_parser().parse_args([*options, "-D", distribution, "-O", renderer])
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            net_convert.handle_args("net-convert", parsed)
        files = [path for path in place.rglob("*") if path.is_file()]
        found[renderer] = {str(path.relative_to(place)): _text(path) for path in files}
    return found


def _text(path: Path) -> str:
    """As it is written; YAML as JSON, for who has no reader of it."""
    text = path.read_text()
    return json.dumps(util.load_yaml(text)) if path.suffix == ".yaml" else text


def read(seed: Path, state: Path, config: Path) -> dict[str, object]:
    """What the data source finds."""
    paths = helpers.Paths({"cloud_dir": str(state), "run_dir": str(state / "run")})
    place = state / "seed" / "nocloud"
    place.mkdir(parents=True)
    for path in seed.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    # from the directory alone: no device of this host is looked at
    settings = {"datasource": {"NoCloud": {"fs_label": None}}}
    source = DataSourceNoCloud.DataSourceNoCloud(settings, fetch("debian")("debian", {}, paths), paths)
    found = source.get_data()
    user = util.load_yaml(source.get_userdata_raw())
    # as `helpers.ConfigMerger`: what an instance is given goes before what the distribution has
    merged = util.mergemanydict([user, util.read_conf(str(config))])
    return {
        "found": found,
        "instance": source.get_instance_id(),
        "hostname": source.metadata.get("local-hostname"),
        "network": source.network_config,
        "user": user,
        "modules": {section: merged.get(section) for section in SECTIONS},
        "distribution": len(util.read_conf(str(config))["cloud_config_modules"]),
    }


def invalid(seed: Path) -> str:
    """What `cloud-init schema` says against the user data; empty: nothing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_cloudconfig_file(str(seed / "user-data"), get_schema())
    except SchemaValidationError as error:
        return str(error)
    return ""


def main() -> None:
    """Print it."""
    seed, out, config = (Path(argument) for argument in sys.argv[1:])
    told = {"invalid": invalid(seed), "rendered": rendered(seed, out / "net")}
    print(json.dumps({**told, **read(seed, out / "state", config)}))


main()
