"""Faults of the language model: mask, tied head, fused projections, positions."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="gpt")

BLOCK = ("h_0", "h.0")

FAULTS = (
    fault(
        "mask missing",
        side="torch",
        edits=(("is_causal=True", "is_causal=False"),),
        layer=BLOCK,
        cause="causal mask",
    ),
    fault(
        "mask shows the next token",
        side="flax",
        edits=(("jnp.tril(jnp.ones((t, t), bool))", "jnp.tril(jnp.ones((t, t), bool), k=1)"),),
        layer=BLOCK,
        cause="causal mask",
    ),
    fault(
        "GELU exact",
        side="torch",
        edits=((', approximate="tanh")', ")"),),
        layer=BLOCK,
        cause="GELU variant",
    ),
    fault(
        "GELU exact",
        side="flax",
        edits=(("jax.nn.gelu(y)", "jax.nn.gelu(y, approximate=False)"),),
        layer=BLOCK,
        cause="GELU variant",
    ),
    fault(
        "attention not scaled",
        side="torch",
        edits=(("is_causal=True", "is_causal=True, scale=1.0"),),
        layer=BLOCK,
        cause="attention scale",
    ),
    fault(
        "queries, values, keys",
        side="torch",
        edits=(
            (
                "query, key, value = (\n            part.unflatten",
                "query, value, key = (\n            part.unflatten",
            ),
        ),
        layer=BLOCK,
        cause=None,
    ),
    fault(
        "head not tied",
        side="torch",
        edits=(("if tied:", "if tied is None:"),),
        layer=("wte", "lm_head"),
        cause="tied",
    ),
    fault(
        "residual missing",
        side="torch",
        edits=(("x = x + self.dropout(", "x = self.dropout("),),
        layer=BLOCK,
        cause="residual missing",
    ),
    fault(
        "embedding times the root of the width",
        side="flax",
        edits=(("x = embedding(tokens) + ", "x = embedding(tokens) * self.width**0.5 + "),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "positions reversed",
        side="torch",
        edits=(("device=tokens.device)", "device=tokens.device).flip(0)"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "epsilon left at the default",
        side="flax",
        edits=(('fnn.LayerNorm(epsilon=self.eps, name="ln_f")', 'fnn.LayerNorm(name="ln_f")'),),
        layer=("ln_f", "ln_f"),
        cause="epsilon",
    ),
    fault(
        "dropout left on",
        side="flax",
        edits=(
            (
                'y = fnn.Dense(width, name="mlp_proj")(jax.nn.gelu(y))\n'
                "        return x + fnn.Dropout(self.dropout)(y, deterministic=deterministic)",
                'y = fnn.Dense(width, name="mlp_proj")(jax.nn.gelu(y))\n'
                "        return x + fnn.Dropout(self.dropout)(y, deterministic=False)",
            ),
        ),
        layer=("h_0/Dropout_1", "h.0.dropout"),
        cause="dropout left on",
    ),
    fault(
        "LayerNorm in float32",
        side="torch",
        edits=(("self.ln_2 = nn.LayerNorm(", "self.ln_2 = Float32LayerNorm("),),
        added=(
            "class Float32LayerNorm(nn.LayerNorm):\n"
            "    def forward(self, x):\n"
            "        weight, bias = self.weight.float(), self.bias.float()\n"
            "        y = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)\n"
            "        return y.to(x.dtype)\n"
        ),
        layer=("h_0/ln_2", "h.0.ln_2"),
        cause="dtype",
    ),
    fault(
        "embedding's gradient stopped",
        side="flax",
        edits=(
            (
                "return embedding.attend(x)",
                "return x @ jax.lax.stop_gradient(embedding.embedding).T",
            ),
        ),
        layer=("wte", "wte"),
        cause=None,
    ),
)
