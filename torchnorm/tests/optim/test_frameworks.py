"""`prepare` under what runs training loops for others: the same steps as in a loop of one's own."""

import copy
import warnings

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchnorm
from parity_tests.tolerances import SAME_STEPS
from torchnorm.tests.optim.nets import data, error, loss, network, same, values

X, Y = data(dtype=torch.float32)
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def plain():
    return network(dtype=torch.float32, kind=nn.Linear)


def optimizer_of(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def expected(epochs=1):
    """The parameters after a loop of one's own, begun anew with each epoch's optimizer."""
    model, found = plain(), []
    for _ in range(epochs):
        optimizer = torchnorm.prepare(model, optimizer_of(model), X).optimizer
        for batch in BATCHES:
            optimizer.zero_grad()
            loss(model, *batch).backward()
            optimizer.step()
        found = values(model)
    return found


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=12)


@pytest.fixture
def module_of():
    """A LightningModule, with automatic or manual optimization, or none without Lightning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, automatic):
            super().__init__()
            self.net, self.automatic_optimization = plain(), automatic

        def training_step(self, batch, number):
            if self.automatic_optimization:
                return loss(self.net, *batch)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss(self.net, *batch))
            optimizer.step()
            return None

        def configure_optimizers(self):
            return torchnorm.prepare(self.net, optimizer_of(self), X).optimizer

    def trained(automatic, fits):
        module = Module(automatic)
        for _ in range(fits):
            kwargs = {"accelerator": "cpu", "logger": False, "barebones": True}
            lightning.Trainer(max_epochs=1, **kwargs).fit(module, loader())
        return values(module)

    return trained


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("automatic", "fits"), [(True, 1), (False, 1), (True, 2)])
def test_lightning(module_of, automatic, fits):
    """With automatic and manual optimization, and in a second fit."""
    assert same(module_of(automatic, fits), expected(fits))


@pytest.mark.filterwarnings("ignore")
def test_accelerate_with_micro_batches():
    """Which steps once for two of them: their gradients are halved, as those of a mean."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, other = plain(), plain()
    pair = torchnorm.prepare(model, optimizer_of(model), X)
    model, optimizer, batches = accelerator.prepare(*pair, loader())
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, *batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    optimizer = torchnorm.prepare(other, optimizer_of(other), X).optimizer
    (loss(other, X, Y) / 2).backward()
    nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    optimizer.step()
    assert error(values(model), values(other)) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Net(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, y):
            return {"loss": loss(self.net, x, y)}

    model = plain()
    pair = torchnorm.prepare(model, optimizer_of(model), X)
    schedule = torch.optim.lr_scheduler.ConstantLR(pair.optimizer, 1.0)
    kwargs = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=12, max_grad_norm=0, **kwargs
    )
    rows = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(
        Net(model), arguments, train_dataset=rows, optimizers=(pair.optimizer, schedule)
    )
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    assert same(values(model), expected())


class Block(nn.Module):
    """A part that is computed twice, in lower precision."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        """Run it."""
        with torch.autocast("cpu", torch.bfloat16):
            out = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
        return out.float()


def recipe(state=None, steps=2, compiled=False):
    """As torchtune's: (parameters, state) after some steps."""
    model = Block(plain())
    optimizer = torchnorm.prepare(model, torch.optim.AdamW(model.parameters(), 0.01), X).optimizer
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    for name, each in (state or {}).items():
        parts[name].load_state_dict(each)
    run = torch.compile(model, backend="eager") if compiled else model
    for _ in range(steps):
        for x, y in BATCHES:
            (loss(run, x, y) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return values(model), {n: copy.deepcopy(each.state_dict()) for n, each in parts.items()}


def test_a_recipe_with_everything_at_once():
    """Micro-batches, autocast, recomputation, clipping, a schedule; resumed bit for bit."""
    _, middle = recipe()
    resumed, state = recipe(middle)
    whole, expected = recipe(steps=4)
    assert same(resumed, whole)
    assert state["scheduler"] == expected["scheduler"]
    assert not same(recipe({k: v for k, v in middle.items() if k != "optimizer"})[0], whole)


def test_a_recipe_that_is_compiled():
    """Prepared before."""
    torch.compiler.reset()
    assert error(recipe(compiled=True)[0], recipe()[0]) <= max(SAME_STEPS, 1e-5)


def test_an_optimizer_s_step_that_is_compiled():
    """The same steps, in few graphs: what is left as it is makes none, nor is it looked at anew."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    def run(compiled):
        model, graphs = plain(), []
        optimizer = torchnorm.prepare(model, optimizer_of(model), X).optimizer
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(8):
            for batch in BATCHES:
                optimizer.zero_grad()
                loss(model, *batch).backward()
                step()
            graphs.append((counters["stats"]["unique_graphs"], counters["frames"]["total"]))
        return values(model), graphs

    found, graphs = run(compiled=True)
    assert error(found, run(compiled=False)[0]) <= max(SAME_STEPS, 1e-5)
    assert graphs[2] == graphs[-1]
    assert graphs[-1][0] <= 8
    assert sum(counters["graph_break"].values()) <= 1
