"""``README.txt`` of a bundle: what it is, and how to check and restore it with tools that every Linux has. Pure."""

import re
import textwrap

from modelvault.bundle.index import Index, table_name, volume_name

_HEAD = """\
This directory is a modelvault bundle: language models on their way to a machine without a network.

  label     {label}
  sequence  {sequence}
  models    {models}
  volumes   {count}, {size:,} bytes of model data
  signed by {key}

With modelvault on the receiving machine

  modelvault import {directory}

"""
_PATCH = """\
This is a patch: it holds pieces of an earlier bundle that was damaged on its way. Without modelvault nothing can be done with it.
"""
_THIN = """\
The bundle is thin: it leaves out files that the receiving machine has already ({left_out}). Without modelvault, name the DIR that an
earlier bundle was restored to.

"""
_RESTORE = """\
Without modelvault: restore.sh

It checks the bundle and restores it with a shell, tar, zstd and sha256sum; openssl 3 for the signature. DIR becomes an OCI image
layout; --files gives each model's files their own names, in a directory for each model:

  sh restore.sh --key {key}.pub --files MODELS DIR

If the volumes lie on several drives, name the directories of all of them after DIR, this one too, or run it once with each drive.

What checks must not come with what is checked. Whoever can change the bundle can put a restore.sh here that says "checked" of anything,
and a {key}.pub of their own. "modelvault bundle" printed the SHA-256 of both on the connected machine. Carry them separately, and compare
before you run it:

  sha256sum restore.sh {key}.pub

By hand: tar, zstd, sha256sum and openssl are enough. Run these in this directory.

1. Check who made it (openssl 3). {key}.pub lies here for convenience only: an attacker could have put their own in its place.
   Its fingerprint must be the one that "modelvault keys show {key}" printed on the connected machine, carried separately:

     openssl pkey -pubin -in {key}.pub -outform DER | sha256sum

   Then the sums, and with them every file that lies on this drive:

     openssl pkeyutl -verify -pubin -inkey {key}.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig

2. Check that nothing was damaged on the way. {sums}

     sha256sum -c SHA256SUMS

3. Restore. DIR is a new, empty directory with room for {size:,} bytes:

     for volume in volume-*.tar.zst; do zstd -dc "$volume" | tar -xf - -C DIR || break; done

4. Join what was too long for one piece, when all volumes are there. Slices are numbered so that their names sort in the right order:

     cd DIR
     for slices in slices/sha256/*; do
       [ -d "$slices" ] || continue
       cat "$slices"/* > "blobs/sha256/${{slices##*/}}" && rm -rf "$slices"
     done

5. Check every file against the name that it was signed under. No output is good output:

     cd blobs/sha256
     for blob in *; do echo "$blob  $blob"; done | sha256sum -c --quiet

DIR is now an OCI image layout. index.json names the models; the manifest of a model lists its files: "digest" is the name under
blobs/sha256, the annotation "org.cncf.model.filepath" is the name that the file has in the model. Copy or link them to where
your engine looks for them.

The format of bundle.json, {table} and {volume} is specified in modelvault's docs/formats/bundle-v1.md.
"""
_READ_BACK = "The sums were taken from the medium after writing, past the system's cache:"
_NOT_READ_BACK = "The sums are of what was written; it was not read back from the medium (--no-readback):"
_WIDTH = 78
_PROSE = re.compile(r"(?:\d\. |   )?(?=\S)")


def readme(index: Index, key: str, *, read_back: bool) -> bytes:
    """Write the text for a bundle that is signed by the key of that name."""
    models = "\n            ".join(str(entry.name) for entry in index.models)
    template = _HEAD + (_PATCH if index.patches else (_THIN if index.base else "") + _RESTORE)
    text = template.format(
        label=index.label,
        sequence=index.sequence,
        models=models,
        count=len(index.volumes),
        size=index.size,
        left_out=len(index.base),
        key=key,
        directory=index.directory_name,
        sums=_READ_BACK if read_back else _NOT_READ_BACK,
        table=table_name(1),
        volume=volume_name(1),
    )
    return "\n\n".join(map(_wrapped, text.split("\n\n"))).encode("utf-8")


def _wrapped(paragraph: str) -> str:
    """Break the lines of prose, which begins at the margin, with a number or under one; commands and tables stay as they are."""
    lead = _PROSE.match(paragraph)
    if lead is None:
        return paragraph
    indent = " " * len(lead[0])
    words = paragraph[len(lead[0]) :].split()
    end = "\n" if paragraph.endswith("\n") else ""
    return (
        textwrap.fill(
            " ".join(words),
            _WIDTH,
            initial_indent=lead[0],
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        + end
    )
