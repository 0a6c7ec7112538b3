import json

import numpy as np
import pytest

from models.digits.data import load


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """Times decide which model is taken, and tests are not about times unless they set them."""
    monkeypatch.setattr("qgraph.engine_choice.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.search.whole.BUDGET_S", 0.1)
    monkeypatch.setattr("qgraph.search.pareto.BUDGET_S", 0.02)
    monkeypatch.setattr("qgraph.runtime.choose._ROUNDS", 2)
    monkeypatch.setattr("qgraph.search.costs._BLOCK_S", 0.001)


@pytest.fixture(scope="session")
def digits():
    return load()


@pytest.fixture(scope="session")
def searched(digits):
    """What the search may see, and what it never sees."""
    images = np.concatenate([digits.train_x, digits.test_x[:100]])
    labels = np.concatenate([digits.train_y, digits.test_y[:100]])
    return {"image": images, "label": labels}


@pytest.fixture(name="invoke")
def _invoke():
    from typer.testing import CliRunner

    from qgraph.cli import app

    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def invoke_json(invoke):
    def run(*args):
        result = invoke(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run
