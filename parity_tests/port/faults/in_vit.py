"""Faults of the vision transformer: GELU, attention, LayerNorm, tokens, dropout."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="vit")

BLOCK = ("blocks/0", "blocks.0")
ATTENTION = ("blocks/0/attention", "blocks.0.attention")
NORM = ("blocks/0/norm1", "blocks.0.norm1")

FAULTS = (
    fault(
        "GELU by tanh",
        side="torch",
        edits=(
            (
                "F.gelu(self.linear1(self.norm2(x)))",
                'F.gelu(self.linear1(self.norm2(x)), approximate="tanh")',
            ),
        ),
        layer=BLOCK,
        cause="GELU variant",
    ),
    fault(
        "GELU by tanh",
        side="flax",
        edits=((", approximate=False)", ")"),),
        layer=BLOCK,
        cause="GELU variant",
    ),
    fault(
        "SiLU in place of GELU",
        side="torch",
        edits=(("F.gelu(", "F.silu("),),
        layer=BLOCK,
        cause="activation",
    ),
    fault(
        "attention scaled by the width",
        side="torch",
        edits=(("/ query.shape[-1] ** 0.5", "/ x.shape[-1] ** 0.5"),),
        layer=ATTENTION,
        cause="attention scale",
    ),
    fault(
        "attention not scaled",
        side="flax",
        edits=((" / query.shape[-1] ** 0.5\n    return", "\n    return"),),
        layer=ATTENTION,
        cause="attention scale",
    ),
    fault(
        "heads interleaved",
        side="torch",
        edits=(
            (
                "y.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
                "y.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)",
            ),
        ),
        layer=ATTENTION,
        cause=None,
    ),
    fault(
        "softmax over the queries",
        side="torch",
        edits=(("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"),),
        layer=ATTENTION,
        cause=None,
    ),
    fault(
        "softmax in float32",
        side="flax",
        edits=(
            (
                "jax.nn.softmax(scores, axis=-1), value)",
                "jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype), value)",
            ),
        ),
        layer=ATTENTION,
        cause="dtype",
    ),
    fault(
        "epsilon left at the default",
        side="torch",
        edits=(("self.norm1 = nn.LayerNorm(width, eps=eps)", "self.norm1 = nn.LayerNorm(width)"),),
        layer=NORM,
        cause="epsilon",
    ),
    fault(
        "LayerNorm over tokens and channels",
        side="flax",
        edits=(
            (
                "self.norm1 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)",
                "self.norm1 = nnx.LayerNorm(width, epsilon=eps, reduction_axes=(1, 2), rngs=rngs)",
            ),
        ),
        layer=NORM,
        cause="normalization axis",
    ),
    fault(
        "normalized after the attention",
        side="torch",
        edits=(("self.attention(self.norm1(x))", "self.norm1(self.attention(x))"),),
        layer=BLOCK,
        cause=None,
    ),
    fault(
        "dropout left on",
        side="torch",
        edits=(("self.dropout(self.linear2(y))", "F.dropout(self.linear2(y), 0.1)"),),
        layer=BLOCK,
        cause="dropout left on",
    ),
    fault(
        "dropout left on",
        side="flax",
        edits=(
            (
                "self.dropout(self.attention(self.norm1(x)))",
                "self.dropout(self.attention(self.norm1(x)), deterministic=False)",
            ),
        ),
        layer=("blocks/0/dropout", "blocks.0.dropout"),
        cause="dropout left on",
    ),
    fault(
        "bias missing",
        side="torch",
        edits=(
            (
                "self.query = nn.Linear(width, width)",
                "self.query = nn.Linear(width, width, bias=False)",
            ),
        ),
        layer=("blocks/0/attention/query", "blocks.0.attention.query"),
        cause="bias missing",
    ),
    fault(
        "kernel transposed",
        side="torch",
        edits=(("self.out = nn.Linear(width, width)", "self.out = Transposed(width, width)"),),
        added=(
            "class Transposed(nn.Linear):\n"
            "    def forward(self, x):\n"
            "        return F.linear(x, self.weight.T, self.bias)\n"
        ),
        layer=("blocks/0/attention/out", "blocks.0.attention.out"),
        cause="transposed kernel",
    ),
    fault(
        "patches by columns",
        side="torch",
        edits=(("self.patches(x).flatten(2)", "self.patches(x).transpose(2, 3).flatten(2)"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "class token last",
        side="flax",
        edits=(("jnp.concatenate([first, x], axis=1)", "jnp.concatenate([x, first], axis=1)"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "positions' gradient stopped",
        side="flax",
        edits=(("+ self.positions[...]", "+ jax.lax.stop_gradient(self.positions[...])"),),
        layer=("", ""),
        cause="gradient stopped",
    ),
    fault(
        "head in float32",
        side="torch",
        edits=(
            ("self.head(self.norm(x[:, 0]))", "self.head(self.norm(x[:, 0]).float().to(x.dtype))"),
        ),
        layer=("", ""),
        cause="dtype",
    ),
)
