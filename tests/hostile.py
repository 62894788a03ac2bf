"""Inputs made to do harm: pickles that run code, arrays that lie about their size, deep JSON."""

import io
import struct
import zipfile

import numpy as np


class RunsCode:
    """Unpickled, it makes a file: what a test looks for afterwards."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (open, (str(self.proof), "w"))


def pickled_array(path, proof):
    """A .npy file of one pickled object, as ``np.save`` writes it."""
    np.save(path, np.array([RunsCode(proof)], dtype=object), allow_pickle=True)


def npy(header, data=b"", *, length=None, version=1):
    """A .npy file with any text for a header, and any stated length of it."""
    text = header.encode("latin1")
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def zip_of(folder, path, *, changes=()):
    """A zip of a mouse folder; each change may add members."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
        for name, content, edit in changes:
            member = zipfile.ZipInfo(name)
            edit(member)
            archive.writestr(member, content)
    return path


def deep_json(depth=200_000):
    return "[" * depth + "]" * depth


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
