"""Manifests of ensembles made to do harm, and what no module of ours may call."""

import ast
from pathlib import Path

import pytest
from hostile import deep_json

from ensembles.manifest import EnsembleManifest, FileRef, ManifestError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "content",
    [deep_json().encode(), b"[]", b"7", b"null", b"{}", b"\xff\xfe", b'{"format": 1', b'{"format": [1]}'],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "ensemble.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"ensemble\.json"):
        EnsembleManifest.read(tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\x", ".."])
def test_files_of_an_ensemble_cannot_lead_out_of_it(path):
    with pytest.raises(ManifestError, match="below the manifest's folder"):
        FileRef(path=path, sha256="0" * 64)


def test_a_link_out_of_an_ensemble_is_refused(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/member.pt").symlink_to(tmp_path / "secret")
    with pytest.raises(ManifestError, match="leads out"):
        FileRef(path="member.pt", sha256="0" * 64).verify(tmp_path / "build")


def forbidden(tree):
    """Yield calls that run code from data: unpickling, evaluating, shells."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {option.arg: option.value for option in node.keywords}
        if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
            yield name
        if name.split(".")[0] in ("pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"):
            yield name
        if name == "torch.load" and ast.unparse(options.get("weights_only", ast.Constant(False))) != "True":
            yield name
        if "allow_pickle" in options and ast.unparse(options["allow_pickle"]) != "False":
            yield name
        if "shell" in options and ast.unparse(options["shell"]) != "False":
            yield name


def test_no_module_unpickles_evaluates_or_calls_a_shell():
    modules = [
        path
        for package in ("data", "models", "training", "hpo", "ensembles")
        for path in ROOT.glob(f"{package}/**/*.py")
    ]
    assert len(modules) > 100
    found = {path.name: names for path in modules if (names := list(forbidden(ast.parse(path.read_text()))))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(x)",
        "eval(x)",
        "yaml.load(x)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_check_above_finds_what_it_looks_for(code):
    assert list(forbidden(ast.parse(code)))
