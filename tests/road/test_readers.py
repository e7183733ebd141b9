"""Programs that know nothing of modelvault read what it writes: skopeo and a registry, hf, tar, zstd, sha256sum, openssl."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imports import GGUF, SHARDED, Shipment, digests, ship
from machines import PROGRAM, SECONDS, Machine
from programs import require_program

ODD = "a__b/_c"
"""A name that the Hub admits and the reference grammar of OCI does not."""


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


def run(*command: str | Path, folder: Path | None = None, home: Path | None = None) -> bytes:
    """Run a program to its end and give what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        env=None if home is None else {"PATH": os.environ["PATH"], "HOME": str(home)},
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]!r} {done.stderr.decode()[-2000:]}"
    return done.stdout


# ── the vault as an OCI image layout ──


@contextlib.contextmanager
def docker_registry(root: Path) -> Iterator[str]:
    """Run Debian's docker-registry on a free loopback port; end it by its process id. Gives host and port."""
    program = require_program("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    configuration = root / "registry.json"  # YAML is a superset of JSON
    storage = {"filesystem": {"rootdirectory": str(root / "registry")}}
    configuration.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    log = root / "registry.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [program, "serve", str(configuration)], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        host, port = address.split(":")
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)  # between two attempts to connect; how long starting takes is not ours to know
        yield address
    finally:
        process.terminate()
        process.wait()


def references(vault: Path) -> dict[str, str]:
    """Under which reference each model is listed, by its exact name."""
    index = json.loads((vault / "index.json").read_bytes())
    return {
        entry["annotations"]["dev.modelvault.name"]: entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in index["manifests"]
    }


def test_skopeo_reads_the_vault(shipment: Shipment, tmp_path: Path) -> None:
    """Breaks if the vault is no OCI image layout to others: their tools are the way out of ours."""
    skopeo = require_program("skopeo")
    pc = Machine(tmp_path / "pc")
    shutil.copytree(shipment.pc.root, pc.root)
    pc.run("add", shipment.folders[GGUF], "--name", ODD)
    pc.run("add", shipment.folders[GGUF], "--name", "demo/tiny-GGUF:Q8_0")
    names = references(pc.vault)
    assert {name: names[name] for name in (GGUF, SHARDED, "demo/tiny-GGUF:Q8_0")} == {
        name: name for name in (GGUF, SHARDED, "demo/tiny-GGUF:Q8_0")
    }
    manifests = {model["name"]: model["manifest"] for model in pc.json("list").result["models"]}
    for name, reference in names.items():
        raw = run(skopeo, "inspect", "--raw", f"oci:{pc.vault}:{reference}")
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == manifests[name]
        assert json.loads(raw)["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"

    with docker_registry(tmp_path) as address:
        remote = {GGUF: "tiny:1", SHARDED: "org/sharded:1", ODD: "odd:1"}
        for name, place in remote.items():
            source = f"oci:{pc.vault}:{names[name]}"
            run(skopeo, "copy", "--dest-tls-verify=false", source, f"docker://{address}/{place}")
            raw = run(skopeo, "inspect", "--raw", "--tls-verify=false", f"docker://{address}/{place}")
            assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == manifests[name], "the identity changed on the way"
        back = tmp_path / "back"
        run(skopeo, "copy", "--src-tls-verify=false", f"docker://{address}/org/sharded:1", f"oci:{back}:sharded")
    blobs = {path.name: path.read_bytes() for path in (back / "blobs" / "sha256").iterdir()}
    for digest in digests(shipment.folders[SHARDED]).values():
        assert hashlib.sha256(blobs[digest]).hexdigest() == digest


# ── serve ──


@contextlib.contextmanager
def serving(machine: Machine) -> Iterator[str]:
    """Run `modelvault serve` on a free port; gives its address, which it prints."""
    log = machine.root / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*PROGRAM, "serve", "--port", "0"],
            env=machine.environment(),
            cwd=machine.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
        )
    try:
        deadline = time.monotonic() + SECONDS
        while " at http://" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)  # between two looks; how long starting takes is not ours to know
        yield log.read_text().partition(" at ")[2].split()[0]
    finally:
        process.terminate()
        process.wait()


def test_hf_downloads_from_serve(shipment: Shipment, tmp_path: Path) -> None:
    """Breaks if the Hub's own command line cannot use a vault as its Hub."""
    hf = Path(sys.executable).with_name("hf")
    assert hf.exists(), "hf comes with huggingface_hub"
    server = Machine(tmp_path / "server")
    shutil.copytree(shipment.pc.root, server.root)
    with serving(server) as url:
        environment = server.environment() | {"HF_ENDPOINT": url, "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        environment.pop("PYTHONWARNINGS")  # the other program's warnings are its own
        target = tmp_path / "downloaded"
        command = [str(hf), "download", SHARDED, "--local-dir", str(target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        got = {path.name: path for path in target.iterdir() if path.is_file()}
        assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in got.items()} == digests(
            shipment.folders[SHARDED]
        )
        # And it is a source for the next machine.
        second = Machine(tmp_path / "second", url)
        second.root.mkdir()
        second.run("pull", SHARDED)
        assert second.models() == {SHARDED}


# ── a bundle without modelvault ──


@pytest.fixture
def bundle(shipment: Shipment, tmp_path: Path) -> Path:
    for program in ("tar", "zstd", "sha256sum", "openssl"):
        require_program(program)
    return Path(shutil.copytree(shipment.bundle, tmp_path / shipment.bundle.name))


def readme_commands(bundle: Path) -> list[str]:
    """The commands of README.txt, one shell script a block."""
    blocks: list[list[str]] = [[]]
    for line in (bundle / "README.txt").read_text().splitlines():
        if line.startswith("     ") and not line.startswith(" " * 12):
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def test_readme_restores_everything(shipment: Shipment, bundle: Path, tmp_path: Path) -> None:
    """Breaks if the instructions that travel with a bundle do not work word for word: they are for the day without us."""
    target = tmp_path / "restored"
    target.mkdir()
    scripts = [
        script.replace("-C DIR", f"-C {target}").replace("cd DIR", f"cd {target}") for script in readme_commands(bundle)
    ]
    shown = run("bash", "-e", "-c", "\n".join(scripts), folder=bundle).decode()
    assert shipment.fingerprint in shown
    assert shown.count("Signature Verified Successfully") == 1
    assert "bundle.json: OK" in shown
    blobs = {path.name: path for path in (target / "blobs" / "sha256").iterdir()}
    for folder in shipment.folders.values():
        for digest in digests(folder).values():
            assert hashlib.sha256(blobs[digest].read_bytes()).hexdigest() == digest
    assert set(references(target)) == {GGUF, SHARDED}
    skopeo = shutil.which("skopeo")
    if skopeo:
        run(skopeo, "inspect", "--raw", f"oci:{target}:{SHARDED}")


def test_plain_tools_notice_damage(bundle: Path) -> None:
    """Breaks if `sha256sum -c SHA256SUMS` passes over a file, or openssl takes an edited index for the signed one."""
    sums = {line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    assert sums == {path.name for path in bundle.iterdir()} - {"SHA256SUMS", "SHA256SUMS.sig"}
    index = bundle / "bundle.json"
    index.write_bytes(index.read_bytes().replace(b'"label":"models"', b'"label":"modelz"'))
    assert (
        subprocess.run(
            ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False
        ).returncode
        == 1
    )
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "default.pub", "-rawin"]
    done = subprocess.run(
        [*verify, "-in", "bundle.json", "-sigfile", "bundle.json.sig"], cwd=bundle, capture_output=True, check=False
    )
    assert done.returncode == 1
