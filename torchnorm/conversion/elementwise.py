"""Tables of operations: which act elementwise, on which entries, and which only move them."""

# Names as `torch.overrides` reports them, by `plain`; without the underscore of in-place forms.
ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus "
    "softsign tanhshrink softshrink hardshrink logsigmoid log_sigmoid sigmoid tanh threshold "
    "_threshold rrelu prelu clamp clamp_min clamp_max clip sin cos erf atan arctan glu".split()
)
NONLINEAR = ACTIVATIONS | frozenset(
    "exp expm1 log log1p log2 sqrt rsqrt square pow __pow__ __rpow__ reciprocal abs absolute "
    "__rdiv__ __rtruediv__ __abs__ maximum minimum where sinh cosh tan asinh sign sgn logaddexp "
    "exp2 masked_fill erfc float_power heaviside xlogy acos acosh asin atanh log10 logit sinc "
    "lgamma digamma polygamma mvlgamma erfinv erfcx entr ndtr log_ndtr ndtri i0 i0e i1 i1e xlog1py "
    "logaddexp2 fmax fmin copysign atan2 hypot fmod remainder __mod__ frac floor ceil round trunc "
    "angle ldexp gammainc gammaincc".split()
)
#: Several names of one function, and the one that is used here.
_ALIASES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "concat": "cat",
    "concatenate": "cat",
    "data": "detach",
    "expit": "sigmoid",
    "fix": "trunc",
    "gammaln": "lgamma",
    "igamma": "gammainc",
    "igammac": "gammaincc",
    "multigammaln": "mvlgamma",
    "psi": "digamma",
    "subtract": "sub",
}


def plain(name: str) -> str:
    """A function's name without that of its module, and one name for all that do the same."""
    name = name.removeprefix("special_")
    return _ALIASES.get(name, name)


#: Linear in each of their tensors, not in all of them together.
MIXTURES = frozenset("addcmul addcdiv lerp".split())
#: They take some entries for their size: a maxout unit, a sorted group, the largest k.
ORDERS = frozenset(
    "amax amin aminmax max min sort msort topk kthvalue median nanmedian mode quantile nanquantile "
    "cummax cummin index_reduce".split()
) | frozenset(
    f"{kind}max_pool{rank}d{indices}"
    for kind in ("", "adaptive_", "fractional_")
    for rank in (1, 2, 3)
    for indices in ("", "_with_indices")
)
SUMS = frozenset("add sub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ rsub".split())
PRODUCTS = frozenset(
    "mul multiply __mul__ __rmul__ __imul__ div divide true_divide __truediv__ __itruediv__".split()
)
TESTS = frozenset(
    "gt ge lt le eq ne __gt__ __ge__ __lt__ __le__ __eq__ __ne__ greater greater_equal less "
    "less_equal not_equal logical_and logical_or logical_not __and__ __or__ __invert__ "
    "zeros_like ones_like full_like".split()
)
CASTS = frozenset("to float double half bfloat16 type type_as".split())
#: Without the way back: what is made of them is a number beside the others.
DETACHED = frozenset({"detach"})
ELEMENTWISE = (
    NONLINEAR
    | SUMS
    | PRODUCTS
    | MIXTURES
    | TESTS
    | CASTS
    | DETACHED
    | frozenset("neg negative clone positive deg2rad rad2deg nan_to_num __neg__ __pos__".split())
)
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
#: By what may be a mask among their arguments, whatever the shape.
INDEXED = frozenset("__getitem__ __setitem__ index_put masked_select masked_scatter".split())
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
    "new_full new_empty new_tensor argmax argmin argsort sign sgn floor ceil round trunc".split()
)
#: What is known to be no activation, beside the tables above: an unknown function may be one.
PASSIVE = frozenset(
    "bucketize searchsorted "
    # Other places, parts, joins.
    "expand expand_as broadcast_to broadcast_tensors tile repeat repeat_interleave ravel diagonal "
    "diag diag_embed diagflat flip fliplr flipud rot90 roll cat stack hstack vstack dstack "
    "column_stack row_stack block_diag atleast_1d atleast_2d atleast_3d hsplit vsplit dsplit "
    "unsafe_chunk unsafe_split unsafe_split_with_sizes tril triu as_strided unfold fold pad "
    "constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle H mH mT "
    "adjoint conj conj_physical resolve_conj resolve_neg real imag view_as_real view_as_complex "
    "complex __reversed__ __iter__ meshgrid cartesian_prod combinations lift_fresh alias values "
    # By an index.
    "gather scatter scatter_add scatter_reduce index_select index_add index_copy index_fill "
    "index_put index masked_select masked_scatter take take_along_dim put select_scatter "
    "slice_scatter diagonal_scatter as_strided_scatter segment_reduce __setitem__ narrow_copy "
    # Sums, differences and linear maps.
    "cumsum diff nansum nanmean sum_to_size trace cumprod logcumsumexp cumulative_trapezoid "
    "trapezoid trapz gradient interpolate upsample grid_sample grid_sampler grid_sampler_2d "
    "grid_sampler_3d affine_grid affine_grid_generator roi_align ps_roi_align roi_pool ps_roi_pool "
    "max_unpool1d max_unpool2d max_unpool3d embedding_bag stft istft mv addmv addr addbmm ger "
    "outer dot vdot inner kron cross chain_matmul multi_dot det logdet slogdet inverse pinverse "
    "cholesky cholesky_inverse cholesky_solve lu lu_solve lu_unpack qr svd svd_lowrank pca_lowrank "
    "matrix_exp matrix_power triangular_solve orgqr ormqr lobpcg smm sspaddmm hsmm dsmm saddmm "
    "sparse_mm sparse_sampled_addmm spmm _sparse_mm _sparse_sum sparse_sum block_diag "
    # Distances and norms.
    "cdist pdist dist pairwise_distance cosine_similarity frobenius_norm nuclear_norm renorm "
    "norm_except_dim _weight_norm native_norm cov corrcoef kl_div bce_with_logits "
    # The same numbers elsewhere, or otherwise laid out.
    "copy fill zero set resize resize_as to_dense _to_dense to_sparse to_sparse_coo to_sparse_csr "
    "to_sparse_csc to_sparse_bsr to_sparse_bsc coalesce sparse_mask to_mkldnn dequantize "
    "pin_memory share_memory to_padded_tensor nested_tensor as_nested_tensor "
    "_nested_tensor_from_mask _pack_padded_sequence _pad_packed_sequence cfloat cdouble chalf xpu "
    "ipu mtia __deepcopy__ "
    "_autocast_to_full_precision _autocast_to_reduced_precision all_reduce all_gather all_to_all "
    "reduce_scatter broadcast __get__ __set__ grad requires_grad retain_grad register_hook "
    "backward _fake_quantize_learnable_per_tensor_affine fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine _fused_moving_avg_obs_fq_helper "
    "fused_moving_avg_obs_fake_quant _fake_quantize_learnable_per_channel_affine "
    # Noise, and what stands for no number of the value.
    "bernoulli normal poisson uniform exponential log_normal native_dropout random cauchy "
    "geometric "
    # Recurrent cells, whose gates nobody sees, and attention.
    "rnn_tanh_cell rnn_relu_cell conv_tbc convolution".split()
)
#: How names of others begin that are none: linear algebra, Fourier transforms, attention.
_PASSIVE_STARTS = (
    "linalg_ fft_ _fft_ _scaled_dot_product _flash_attention _efficient_attention flex_attention "
    "_native_multi_head _thnn_ _batch_norm _fused_rms _native_batch_norm _nested _transformer_ "
    "_convolution cudnn_ miopen_ mkldnn_ is_ _to_copy _unsafe_view _reshape_alias"
).split()


def is_unknown(name: str) -> bool:
    """Whether it is a function of which nothing is known: an activation, perhaps."""
    return not (
        name in _KNOWN
        or name.endswith(("_mm", "_copy"))
        or "loss" in name
        or "cross_entropy" in name
        or name.startswith(tuple(_PASSIVE_STARTS))
    )


_KNOWN = (ELEMENTWISE | SPLITS | POOLS | VIEWS | DROPOUTS | NORMALIZATIONS | LAYERS | ATTENTION) | (
    SOFTMAXES | REDUCTIONS | ORDERS | WITHOUT_GRADIENT | PASSIVE
)
