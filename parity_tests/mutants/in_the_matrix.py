"""Bugs that the matrix shows: in what a layer's backward pass returns."""

from __future__ import annotations

from parity_tests.mutants.mutant import Mutant, same

#: Files that most of the bugs are in, and a text that two of them spoil.
_MOMENTS, _SUMS = "statistics/moments.py", "statistics/weighted_sums.py"
_SHRUNK = "mass + shrinkage * (neuron.square / mass)"

MUTANTS = (
    # Variance, damping, epsilon.
    Mutant(
        "epsilon outside the root",
        _MOMENTS,
        ("jnp.sqrt(square))", "jnp.sqrt(square - epsilon) + epsilon)"),
        ("(variance + added).sqrt()", "(variance).sqrt() + added.sqrt()"),
        "conv, every knob",
    ),
    Mutant(
        "damping by the mean over neurons",
        _MOMENTS,
        ("axes = tuple(range(variance.ndim - 1))", "axes = (variance.ndim - 1,)"),
        ("axes = tuple(range(1, variance.ndim))", "axes = (0,)"),
    ),
    Mutant(
        "damping by the maximum",
        _MOMENTS,
        ("damping * jnp.mean(variance", "damping * jnp.max(variance"),
        ("damping * variance.mean(", "damping * variance.amax("),
    ),
    Mutant(
        "unbiased variance",
        _MOMENTS,
        ("jnp.maximum(variance / layer.mass, 0)", "jnp.maximum(variance / (layer.mass - 1), 0)"),
        (
            "torch.clamp_min(variance / layer.mass, 0)",
            "torch.clamp_min(variance / (layer.mass - 1), 0)",
        ),
    ),
    same(
        "E[x^2] - E[x]^2 without a shift",
        _MOMENTS,
        "batch.mean if batch.centered",
        "0 * batch.mean if batch.centered",
        "large_mean",
    ),
    Mutant(
        "statistics in float32",
        "statistics/batch.py",
        ("dtype = at_least_float32(x.dtype)", "dtype = jnp.float32"),
        ("torch.promote_types(x.dtype, torch.float32)", "torch.float32"),
    ),
    Mutant(
        "variance about another mean",
        _MOMENTS,
        ("rest * variance - step * step", "rest * variance"),
        ("torch.addcmul(rest * variance, step, step, value=-1)", "rest * variance"),
    ),
    # Mean and shrinkage.
    same("shrinkage missing", _MOMENTS, _SHRUNK, "mass"),
    same(
        "number of samples by mass alone",
        _MOMENTS,
        _SHRUNK,
        "mass + shrinkage * (neuron.mass / mass)",
        "every gate",
    ),
    same(
        "neuron's own mean forgotten",
        _MOMENTS,
        "return layer_offset + step, pooled",
        "return layer_offset, pooled",
    ),
    Mutant(
        "statistics of transposed features",
        _SUMS,
        ("operation.kernel_grad(x, kernel, s)", "operation.kernel_grad(x, kernel, s)[::-1]"),
        ("operation.kernel_grad(x, weight, s)", "operation.kernel_grad(x, weight, s).flip(1)"),
    ),
    Mutant(
        "centered without a bias",
        _SUMS,
        (
            "if centered else each.x",
            "if centered else each.x - jnp.mean(each.x, 0, keepdims=True)",
        ),
        (
            "if centered else batch.every.x",
            "if centered else batch.every.x - batch.every.x.mean(0)",
        ),
        "no_bias",
    ),
    same(
        "scale 'layer' is 'neuron'",
        _SUMS,
        'neuron_scaled = rule.scale != "none", rule.scale == "neuron"',
        'neuron_scaled = rule.scale != "none", rule.scale != "none"',
        "every knob, no bias",
    ),
    same(
        "scale 'none' is 'layer'",
        _SUMS,
        'neuron_scaled = rule.scale != "none", rule',
        "neuron_scaled = True, rule",
        "every knob, no bias",
    ),
    # Which samples count.
    Mutant(
        "the wrong side of the ReLU",
        "activations.py",
        ("jax.nn.relu: lambda z: z > 0", "jax.nn.relu: lambda z: z < 0"),
        ("F.relu: lambda z: z > 0", "F.relu: lambda z: z < 0"),
    ),
    Mutant(
        "|phi'| without the bars",
        "statistics/weighting.py",
        ("return jnp.abs(base) if", "return base if"),
        ("return base.abs() if", "return base if"),
        "every gate",
    ),
    same(
        "gate_squared is gate",
        "statistics/weighting.py",
        'weighting == "gate" else',
        'weighting != "error" else',
        "conv, every knob",
    ),
    same(
        "error weight not squared",
        "statistics/weighting.py",
        'weighting == "gate" else',
        'weighting != "gate_squared" else',
        "conv, every knob",
    ),
    same("rows ignored", "operations/linear.py", "if rows is None or", "if True or", "deferred"),
    Mutant(
        "the first rows",
        "operations/rows.py",
        (
            "x = x.reshape(*before, batch // (every * block), every * block, *behind)",
            "return lax.slice_in_dim(x, 0, batch // every, axis=axis)",
        ),
        (
            "return x.unflatten(0, (-1, every * block))[:, :block].flatten(0, 1)",
            "return x[: batch // every]",
        ),
        "deferred",
    ),
    same(
        "the layer's moments of the rows",
        _SUMS,
        "layer_sums(batch, batch.every, every",
        "layer_sums(batch, batch.rows, rows",
        "deferred",
    ),
    # Gradients.
    Mutant(
        "difference of two large numbers",
        "backward/adapted.py",
        (
            "product = operation.kernel_grad(shifted, kernel, batch.g_z).astype(dtype)",
            "product = operation.kernel_grad(x, kernel, batch.g_z).astype(dtype)"
            " - (moments.mean - moments.offset) * g_b",
        ),
        (
            "product = operation.kernel_grad(shifted, weight, batch.g_z).to(dtype)",
            "product = operation.kernel_grad(x, weight, batch.g_z).to(dtype)"
            " - (moments.mean - moments.offset) * g_b",
        ),
        "large_mean",
    ),
    same(
        "standardized not divided",
        "coordinates.py",
        "centered_gradient * at.scale",
        "centered_gradient",
    ),
    Mutant(
        "sigma in place of its square",
        "coordinates.py",
        ("kernel_step = step * at.scale", "kernel_step = step"),
        ("weight_step = step * at.scale", "weight_step = step"),
    ),
    Mutant(
        "bias correction dropped",
        "coordinates.py",
        ("bias_step - _over_inputs(moved)", "bias_step - 0 * _over_inputs(moved)"),
        (
            "bias_step - _mean_response(weight_step, at)",
            "bias_step - 0 * _mean_response(weight_step, at)",
        ),
    ),
    Mutant(
        "bias corrected by the old kernel gradient",
        "coordinates.py",
        ("at.mean * kernel_step)", "at.mean * step)"),
        ("_mean_response(weight_step, at)", "_mean_response(step, at)"),
    ),
    Mutant(
        "recorded: sigma in place of its square",
        "coordinates.py",
        None,
        ("foreach._foreach_mul_(list(steps), [each.scale for each in at])", "pass"),
    ),
    Mutant(
        "recorded: bias correction dropped",
        "coordinates.py",
        None,
        ("foreach._foreach_sub_(shifted, responses)", "pass"),
    ),
    Mutant(
        "recorded: the mean forgotten",
        "coordinates.py",
        ("else g_w - at.mean * g_b", "else g_w"),
        ("strict=True)), value=-1)", "strict=True)), value=0)"),
    ),
    same(
        "recorded: the mass squared",
        "statistics/tracked.py",
        "else neuron.mass,",
        "else neuron.square,",
        "every gate",
    ),
    same(
        "recorded: shrinkage is damping",
        "statistics/tracked.py",
        "raw_moments(layer, neuron, statistics.shrinkage)",
        "raw_moments(layer, neuron, statistics.damping)",
    ),
    Mutant(
        "input gradient adapted",
        "backward/linear_operation.py",
        ("return g_x, adapted,", "return g_x - jnp.mean(g_x, axis=0, keepdims=True), adapted,"),
        ("return g_z, None, g_weight", "return g_z - g_z.mean(0), None, g_weight"),
    ),
    same(
        "standardized is preconditioned",
        "backward/adapted.py",
        '(g_w, g_b) if rule.gradient == "standardized" else',
        "(g_w, g_b) if False else",
        "every knob",
    ),
    # Padding: samples of value 0.
    Mutant(
        "padding is no sample",
        "operations/convolution.py",
        ("padded = any(p > 0 for pair in zeros for p in pair) or", "padded ="),
        ("any(padding), rank", "False, rank"),
        "conv: same",
        "functional/convolution.py",
    ),
    Mutant(
        "a dilated input is no padding",
        "operations/convolution.py",
        (" or max(input_dilation) > 1", ""),
        None,
        "conv: dilated input",
    ),
    Mutant(
        "a stride of a transposed convolution is no padding",
        "operations/convolution.py",
        ("LinearOperation(apply, 1, padded=True", "LinearOperation(apply, 1, padded=False"),
        ("padded=True,", "padded=False,"),
        "transposed",
        "functional/convolution.py",
    ),
    Mutant(
        "the wrong sign where padding moves the mean",
        _SUMS,
        (
            "self.first - self.center * self.padding",
            "self.first + self.center * self.padding",
        ),
        ("self.first - shift", "self.first + shift"),
        "conv: same",
    ),
    Mutant(
        "padding does not move the mean",
        _SUMS,
        ("self.first - self.center * self.padding", "self.first"),
        ("self.first - shift", "self.first"),
        "conv: same",
    ),
    Mutant(
        "half of the cross term",
        _MOMENTS,
        ("sums.first + offset**2 * real", "sums.first / 2 + offset**2 * real"),
        ("offset, sums.first, value=-2)", "offset, sums.first, value=-1)"),
        "conv: same",
    ),
    same(
        "the square of the step forgotten",
        _MOMENTS,
        " + offset**2 * real",
        "",
        "conv: same",
    ),
    same(
        "padding has no variance",
        _MOMENTS,
        "about + (sums.center + offset) ** 2 * sums.padding",
        "about",
        "conv: same",
    ),
    same(
        "padding has the shift's gradient",
        "backward/adapted.py",
        "return product + (moments.mean - moments.offset) * real - moments.mean * g_b",
        "return product - moments.offset * g_b",
        "conv: same",
    ),
    # Groups, masks, windows.
    Mutant(
        "groups in turns",
        "operations/linear.py",
        (
            "jnp.repeat(values, outputs // self.groups, axis=-1)",
            "jnp.tile(values, outputs // self.groups)",
        ),
        (
            "values.repeat_interleave(outputs // self.groups, 0)",
            "values.repeat(outputs // self.groups, *[1] * (values.ndim - 1))",
        ),
        "conv: groups",
    ),
    Mutant(
        "channels in turns",
        "operations/linear.py",
        (
            "channels.reshape(self.groups, channels.size // self.groups).T",
            "channels.reshape(channels.size // self.groups, self.groups)",
        ),
        (
            "channels.reshape(self.groups, inputs, *taps)",
            "channels.reshape(inputs, self.groups, *taps).transpose(0, 1)",
        ),
        "conv: groups",
    ),
    Mutant(
        "channels of a transposed convolution in turns",
        "operations/convolution.py",
        None,
        (
            "weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *window)",
            "weight.reshape(-1, groups, weight.shape[1], *window).transpose(0, 1)",
        ),
        "transposed: torch, groups",
    ),
    Mutant(
        "what is masked moves the bias",
        "backward/adapted.py",
        ("g_w = jnp.where(jnp.asarray(operation.mask) == 0, 0, g_w)", "pass"),
        None,
        "conv: mask",
    ),
    Mutant(
        "circular, one further",
        "operations/convolution.py",
        ("extra_behind=transpose_kernel)", "extra_behind=not transpose_kernel)"),
        None,
        "transposed: circular",
    ),
    Mutant(
        "groups among the inputs",
        "operations/einsum.py",
        (
            "_transpose(x, self.x, self.samples + self.groups + self.inputs)",
            "_transpose(x, self.x, self.samples + self.inputs + self.groups)",
        ),
        None,
        "einsum: groups",
    ),
    # Gates that are told later, or read several neurons.
    Mutant(
        "tell_gate hands on no slope",
        "backward/deferred.py",
        ("return slope.astype(handle.dtype)", "return slope.astype(handle.dtype) * 0"),
        ("return g_u, slope.to(ctx.dtype), None", "return g_u, slope.to(ctx.dtype) * 0, None"),
        "deferred",
    ),
    Mutant(
        "tell_gate hands on the gradient",
        "backward/deferred.py",
        ("del g_u, position\n    return slope", "return g_u.astype(slope.dtype)"),
        ("return g_u, slope.to(ctx.dtype), None", "return g_u, g_u.to(ctx.dtype), None"),
        "deferred",
    ),
    Mutant(
        "the halves of a GLU exchanged",
        "activations.py",
        (
            "return jnp.concatenate(slopes, axis=-1)",
            "return jnp.concatenate(slopes[::-1], axis=-1)",
        ),
        ("a, b = z.chunk(2, dim=-1)\n    return", "b, a = z.chunk(2, dim=-1)\n    return"),
        "joint",
    ),
    Mutant(
        "a joint gate's own size as its weight",
        "activations.py",
        ("return pull(jnp.ones_like(a))[0]", "return pull(a)[0]"),
        (
            "torch.autograd.grad(function(z * 1).sum(), z)",
            "torch.autograd.grad(function(z * 1).square().sum(), z)",
        ),
        "joint",
    ),
)
