"""The pages that people open, in a real browser at laptop width, on light and on dark background."""

import json
import re
import threading
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import optuna
import pytest
from browser import CHROMIUM, LAPTOP, look
from ensemble_pools import make_pool
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from data.overview import write_overview
from ensembles.diagnostics import analyze
from ensembles.evidence_pass import gather
from ensembles.gate import choose
from ensembles.report import write_report as write_ensemble_report
from hpo.pruning import PruningConfig
from hpo.report import write_report as write_search_report
from hpo.study import storage_url
from training.recipes import recipe
from training.spec import to_plain

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
    # Two starts of a browser a page.
    pytest.mark.timeout(300),
]
EPOCHS, NUM_RUNS = 9, 12
RANGES = {
    "optimizer.core_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "optimizer.readout_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "model.ff_dropout": FloatDistribution(0.0, 0.5),
    "model.spatial_patch_size": IntDistribution(3, 16),
    "model.num_heads": IntDistribution(1, 8),
    "model.ff_activation": CategoricalDistribution(["tanh", "gelu", "elu"]),
}


def a_trial(generator: np.random.Generator) -> optuna.trial.FrozenTrial:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=int(generator.integers(1000))))
    params = study.ask(RANGES).params
    final, is_pruned = float(generator.uniform(0.1, 0.5)), generator.random() < 0.4
    curve = [final * (epoch / EPOCHS) ** 0.5 for epoch in range(1, (3 if is_pruned else EPOCHS) + 1)]
    outcome = "pruned" if is_pruned else "finished"
    return create_trial(
        params=params,
        distributions=RANGES,
        state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
        value=None if is_pruned else curve[-1],
        intermediate_values=dict(enumerate(curve, start=1)),
        user_attrs={"outcome": outcome, "seconds": 10.0 * len(curve)},
    )


@pytest.fixture(scope="module")
def search_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = optuna.create_study(storage=storage_url(folder), study_name="vivit", direction="maximize")
    generator = np.random.default_rng(5)
    study.add_trials([a_trial(generator) for _ in range(NUM_RUNS)])
    study._storage.remove_session()
    study._storage._backend.engine.dispose()
    content = {
        "space": {"name": "vivit", "scale": "demo"},
        "base": to_plain(replace(recipe("vivit"), epochs=EPOCHS)),
        "pinned": {},
        "pruning": asdict(PruningConfig(min_epochs=1, max_epochs=EPOCHS)),
    }
    (folder / "study.json").write_text(json.dumps(content))
    return write_search_report(folder)


@pytest.fixture(scope="module")
def ensemble_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    pool = make_pool(neurons=(20, 30), num_members=5, videos=5, num_frames=80)
    evidence = gather(
        pool.store(folder / "predictions"),
        pool.members,
        pool.recordings,
        tier="oracle",
        folder=folder / "evidence",
    )
    groups = dict(zip(pool.members, "aabbc", strict=True))
    analysis = analyze(
        choose(evidence, groups=groups),
        choose_on=evidence,
        report_on=evidence,
        recordings=pool.recordings,
        groups=groups,
        costs=dict.fromkeys(pool.members, 1.0),
        cost_unit="seconds per trial",
    )
    return write_ensemble_report(analysis, folder / "report")


@pytest.fixture
def data_page(recordings, tmp_path):
    return write_overview(recordings, tmp_path / "overview.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("page", "least"), [("search_page", 6), ("ensemble_page", 5), ("data_page", 6)])
def test_a_page_is_whole_quiet_and_fits_the_screen(request, tmp_path, page, least, dark):
    seen = look(request.getfixturevalue(page), tmp_path, dark=dark)
    found = seen.measured
    assert found["complaints"] == []
    assert seen.console == []
    assert [name for name in found["requests"] if not name.startswith("data:")] == []
    assert found["unloaded"] == 0
    assert len(found["pictures"]) >= least
    assert all(min(size) > 40 and size[0] <= LAPTOP[0] for size in found["pictures"])
    assert found["client_width"] == LAPTOP[0]
    assert found["scroll_width"] <= LAPTOP[0]
    assert found["is_dark"] is dark
    background, text = (brightness(found[name]) for name in ("background", "text"))
    assert (background < 60 and text > 180) if dark else (background > 200 and text < 80)


def brightness(color: str) -> float:
    red, green, blue = (int(number) for number in re.findall(r"\d+", color)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.fixture
def picture_elsewhere(tmp_path):
    """The address of a picture on a server of this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "there.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='50' height='50'/>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/there.svg"
        server.shutdown()
        thread.join()


def test_the_check_sees_a_broken_picture_an_error_a_request_and_a_wide_page(tmp_path, picture_elsewhere):
    page = tmp_path / "bad.html"
    page.write_text(
        f"<!DOCTYPE html><html><head></head><body><img src='missing.png'><img src='{picture_elsewhere}'>"
        "<div style='width: 3000px'>wide</div><script>nothing.here()</script></body></html>"
    )
    found = look(page, tmp_path, dark=False).measured
    assert any("missing.png" in complaint for complaint in found["complaints"])
    assert any("nothing is not defined" in complaint for complaint in found["complaints"])
    assert picture_elsewhere in found["requests"]
    assert found["unloaded"] == 1
    assert found["scroll_width"] >= 3000
