"""Tables of operations: which act elementwise, on which entries, and which only move them."""

# Names as `torch.overrides` reports them; without the underscore of in-place forms.
ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus "
    "softsign tanhshrink softshrink hardshrink logsigmoid log_sigmoid sigmoid tanh threshold "
    "_threshold rrelu prelu clamp clamp_min clamp_max clip sin cos erf atan arctan glu".split()
)
NONLINEAR = ACTIVATIONS | frozenset(
    "exp expm1 log log1p log2 sqrt rsqrt square pow __pow__ __rpow__ reciprocal abs absolute "
    "__rdiv__ __rtruediv__ maximum minimum where sinh cosh tan asinh sign sgn logaddexp exp2 "
    "masked_fill erfc float_power heaviside xlogy".split()
)
SUMS = frozenset("add sub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ rsub".split())
PRODUCTS = frozenset(
    "mul multiply __mul__ __rmul__ __imul__ div divide true_divide __truediv__ __itruediv__".split()
)
TESTS = frozenset(
    "gt ge lt le eq ne greater less logical_and logical_or logical_not __and__ __or__ __invert__ "
    "zeros_like ones_like full_like".split()
)
CASTS = frozenset("to float double half bfloat16 type type_as".split())
ELEMENTWISE = NONLINEAR | SUMS | PRODUCTS | TESTS | CASTS | {"neg", "negative", "clone", "positive"}
SPLITS = frozenset(
    "chunk split tensor_split unbind __getitem__ narrow select glu split_with_sizes".split()
)
POOLS = frozenset(
    f"{kind}_pool{rank}d"
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
    for rank in (1, 2, 3)
)
VIEWS = (
    frozenset(
        "view reshape flatten unflatten contiguous squeeze unsqueeze transpose permute swapaxes "
        "swapdims movedim moveaxis T mT t view_as reshape_as requires_grad_ cpu cuda".split()
    )
    | CASTS
    | {"clone"}
)
PERMUTATIONS = frozenset("transpose permute swapaxes swapdims movedim moveaxis T mT t".split())
DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout".split()
)
NORMALIZATIONS = frozenset(
    "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm native_layer_norm"
    " native_batch_norm native_group_norm normalize".split()
)
LAYERS = frozenset(
    "linear bilinear addmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
    " embedding lstm gru rnn_tanh rnn_relu lstm_cell gru_cell".split()
)
MATRIX_PRODUCTS = frozenset("matmul __matmul__ __rmatmul__ mm bmm baddbmm einsum tensordot".split())
ATTENTION = MATRIX_PRODUCTS | frozenset(
    "scaled_dot_product_attention multi_head_attention_forward".split()
)
SOFTMAXES = frozenset("softmax log_softmax softmin gumbel_softmax".split())
REDUCTIONS = frozenset(
    "sum mean var std var_mean std_mean norm vector_norm amax amin max min prod logsumexp".split()
)
# By a mask or by an order, of which nothing more is known.
SELECTIONS = frozenset("where masked_fill".split())
# Inside a normalization that is written out, the others mean nothing.
UNMISTAKABLE = ACTIVATIONS - set("clamp clamp_min clamp_max clip sin cos erf atan arctan".split())
# phi'(phi(z)) = phi'(z): seen after the activation as well as before it.
SEEN_AFTER = frozenset({"relu", "relu6", "leaky_relu", "hardtanh"})
#: Which argument is the axis, of those that split.
AXIS_ARGUMENT = {"chunk": 2, "split": 2, "tensor_split": 2, "split_with_sizes": 2} | dict.fromkeys(
    ("unbind", "narrow", "select", "glu"), 1
)
#: What no gradient flows back through.
WITHOUT_GRADIENT = frozenset(
    "detach data zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones "
    "new_full new_empty new_tensor argmax argmin argsort sign sgn".split()
)
