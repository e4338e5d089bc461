"""The configuration file: TOML in, frozen typed schema out, and every problem named at once."""

from control.config.load import load, parse
from control.config.problems import ConfigError, Problem
from control.config.proposal import format_proposal, parse_proposal
from control.config.schema import Config, GatewaySettings, InterfaceAddress, PortConfig

__all__ = [
    "Config",
    "ConfigError",
    "GatewaySettings",
    "InterfaceAddress",
    "PortConfig",
    "Problem",
    "format_proposal",
    "load",
    "parse",
    "parse_proposal",
]
