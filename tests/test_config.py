"""Configuration: precedence, units, and errors that name where a bad value came from."""

from pathlib import Path

import pytest

from modelvault.config import Config, config_directory, default_home, load_config, parse_size
from modelvault.errors import UsageProblem


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("20M", 20_000_000),
        ("4GiB", 4 << 30),
        ("1.5 GB", 1_500_000_000),
        ("2k", 2000),
        ("1ki", 1024),
        ("3T", 3 * 10**12),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Breaks if a unit means something else than documented."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1 XB", "1e9", "0.0001", "9" * 400, "99999999T"])
def test_bad_sizes(text: str) -> None:
    """Breaks if nonsense is taken for a size."""
    with pytest.raises(UsageProblem):
        parse_size(text)


def test_precedence(tmp_path: Path) -> None:
    """Breaks if a flag does not beat the environment, or the environment the file."""
    (tmp_path / "config.toml").write_text('connections = 3\nlabel = "lab"\nlimit_rate = "1M"\n')
    config = load_config(tmp_path, {"MODELVAULT_CONNECTIONS": "5"})
    assert (config.connections, config.label, config.limit_rate) == (5, "lab", 1_000_000)
    assert config.override(connections=7, label=None).connections == 7
    assert config.override(connections=7, label=None).label == "lab"
    assert load_config(tmp_path / "nowhere", {}) == Config()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("conections = 3", "conections"),
        ("connections = 'many'", "connections"),
        ("connections = 2.7", "connections: 2.7"),
        ("connections = true", "connections: True"),
        ("endpoint = 5", "endpoint: 5"),
        ("endpoint = []", r"endpoint: \[\]"),
        ("endpoint = ['https://hub', 5]", "endpoint"),
        ("label = ['a']", "label"),
        ("limit_rate = 1.5", "limit_rate"),
        ("lock_wait = '10'", "lock_wait"),
        ("x = [", "config.toml"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, named: str) -> None:
    """Breaks if a misspelled setting silently does not hold."""
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageProblem, match=named):
        load_config(tmp_path, {})


def test_every_field_can_be_set(tmp_path: Path) -> None:
    """Breaks if a field of the configuration is read from nowhere."""
    texts = {"endpoint": "https://hub", "connections": "2", "limit_rate": "3k", "volume_size": "4MiB"}
    texts |= {"ollama_registry": "https://registry", "label": "lab", "site": "lab-7"}
    texts |= {"catalog": "/srv/catalog", "lock_wait": "1"}
    assert texts.keys() == set(Config.__slots__)
    found = load_config(tmp_path, {f"MODELVAULT_{key.upper()}": text for key, text in texts.items()})
    assert all(getattr(found, key) != getattr(Config(), key) for key in texts)


def test_several_hubs(tmp_path: Path) -> None:
    """Breaks if hubs that stand in for one another cannot be named in a file or a variable, or lose their order."""
    (tmp_path / "config.toml").write_text('endpoint = ["https://b", "https://a"]')
    assert load_config(tmp_path, {}).endpoint == ("https://b", "https://a")
    assert load_config(tmp_path, {"MODELVAULT_ENDPOINT": "https://c, https://d"}).endpoint == ("https://c", "https://d")


def test_bad_variable_is_named(tmp_path: Path) -> None:
    """Breaks if the user is not told which variable is wrong."""
    with pytest.raises(UsageProblem, match="MODELVAULT_VOLUME_SIZE"):
        load_config(tmp_path, {"MODELVAULT_VOLUME_SIZE": "huge"})


def test_the_users_own_configuration(tmp_path: Path) -> None:
    """Breaks if a user's catalog is sought in somebody else's directory."""
    assert config_directory({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "modelvault"
    assert config_directory({}).name == "modelvault"


def test_home_from_the_environment(tmp_path: Path) -> None:
    """Breaks if MODELVAULT_HOME does not select the vault."""
    assert default_home({"MODELVAULT_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"MODELVAULT_HOME": "x"}) == Path.cwd() / "x"
