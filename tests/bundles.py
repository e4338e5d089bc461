"""SA bundles of two of our gateways: AH around the ESP of a configuration that has none."""

from __future__ import annotations

import tomllib

from control.lab.gateway import toml_table


def bundled(text: str, key: str = "5") -> str:
    """A gateway's configuration with AH around all of its SAs, on keys of the sender's name filled up with `key`."""
    for sa in tomllib.loads(text)["sa"]:
        name = sa["name"]
        around = {end: sa[end] for end in ("direction", "local", "remote")}
        around |= {"name": f"ah-{name}", "protocol": "ah", "mode": "transport", "spi": sa["spi"] + 0x1000}
        around |= {"proposal": "sha256-esn", "integrity_key": name.encode().hex().ljust(64, key)}
        text = text.replace(f'name = "{name}"\n', f'name = "{name}"\nouter = "ah-{name}"\n')
        text += toml_table("[sa]", around)
    return text
