"""Runs that sleep and note where they did; a module of its own, because workers import it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hpo_search import EPOCHS, make_report, make_result

from training.results import Outcome


@dataclass(frozen=True, kw_only=True)
class Noting:
    """Notes every epoch that it trains, with the machine; goes on where its folder ends."""

    log: Path
    seconds: float

    def __call__(self, spec, folder, on_epoch):
        import ray

        folder.mkdir(parents=True, exist_ok=True)
        trained = folder / "epochs"
        done = len(trained.read_text().split()) if trained.exists() else 0
        for epoch in range(1, EPOCHS + 1):
            if epoch > done:
                time.sleep(self.seconds)
                with trained.open("a") as file:
                    file.write(f"{epoch}\n")
                note = [folder.name, epoch, ray.get_runtime_context().get_node_id(), os.getpid()]
                with self.log.open("a") as file:
                    file.write(json.dumps(note) + "\n")
            if not on_epoch(make_report(spec, epoch)):
                return make_result(spec, folder, Outcome.PRUNED, epochs=epoch)
        return make_result(spec, folder, Outcome.FINISHED, epochs=EPOCHS)
