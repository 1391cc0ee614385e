"""Compare three methods on a model of one's own."""

import equipoise
from own_model import DCNv2PLE

if __name__ == "__main__":  # worker processes import this file
    methods = ["equal", "multibalance", "pub"]
    settings = {"seeds": 2, "epochs": 3, "batch_size": 256}
    results = equipoise.compare(
        "funnel", data_options={"rows": 20_000}, model=DCNv2PLE, methods=methods, out="own-model", **settings
    )
    for run in results.runs:
        print(run.method, run.seed, {task: round(found["auc"], 3) for task, found in run.test.items()})
