import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_child import CONVOLUTION, evaluate, make_child, ragged


def numpy_maxima(embedded, num_words, kernels):
    """Returns each filter's largest response over the windows that begin in the text, in loops.

    Args:
      embedded: [B, L, E].
      num_words: [B].
      kernels: [width, E, F] each.
    """
    out = []
    for text, words in zip(np.asarray(embedded, np.float64), num_words, strict=True):
        text[words:] = 0
        row = []
        for kernel in kernels:
            width, _, filters = kernel.shape
            zeros = np.zeros((width, text.shape[1]))
            windows = [np.concatenate([text, zeros])[i : i + width] for i in range(max(words, 1))]
            row += [max((w * kernel[..., f]).sum() for w in windows) for f in range(filters)]
        out.append(row)
    return np.array(out)


def cut_kernel(kernel, widths, filters, size):
    """Returns each width's part, [width, E, F], of the convolutions' common kernel."""
    return [
        np.asarray(kernel[: width * size, i * filters : (i + 1) * filters], np.float64).reshape(
            width, size, filters
        )
        for i, width in enumerate(widths)
    ]


@pytest.mark.parametrize("max_ngram", [2, 3])
def test_convolutions_equal_loops_over_windows(max_ngram):
    child = make_child(embedding="random32", **CONVOLUTION | {"conv_max_ngram": max_ngram})
    spec, _, batch, _, variables = child
    lengths = np.array([3, 5, 1, 0, 2, 4])
    rng = np.random.default_rng(3)
    words = rng.integers(1, spec.architecture.rows, (6, 5))
    tokens = jnp.asarray(np.where(np.arange(5)[None] < lengths[:, None], words, 0), jnp.int32)
    deep = variables["params"]["deep"]
    deep["conv_norm"]["affine"] = (
        deep["conv_norm"]["affine"]
        .at[0]
        .set(0.1 * jnp.arange(-1.0, 1.0, 2 / (16 * (max_ngram - 1))))
    )
    embedded = np.asarray(deep["table"])[tokens]
    kernels = cut_kernel(deep["conv"]["kernel"], range(2, max_ngram + 1), 16, 32)
    maxima = numpy_maxima(embedded, lengths, kernels)
    maxima = np.maximum(maxima + np.asarray(deep["conv_norm"]["affine"][:1]), 0)
    assert 0.1 < (maxima > 0).mean() < 1
    mean = embedded.sum(1) / np.maximum(lengths, 1)[:, None]
    expected = np.concatenate([mean, maxima], 1) @ np.asarray(deep["kernel"]).T
    logits = evaluate(child, tokens=ragged(tokens), weights=jnp.zeros_like(batch.weights))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_start_with_the_variance_of_one_over_fan_in():
    _, _, _, _, variables = make_child(embedding="random32", **CONVOLUTION)
    kernel = variables["params"]["deep"]["conv"]["kernel"]
    assert kernel.shape == (3 * 32, 2 * 16)
    for width, part in zip((2, 3), cut_kernel(kernel, (2, 3), 16, 32), strict=True):
        assert np.abs(part).max() <= np.sqrt(3 / (width * 32)) + 1e-6
        assert part.var() == pytest.approx(1 / (width * 32), rel=0.1)


def test_what_lies_beyond_a_narrow_kernel_changes_nothing_and_has_no_gradient():
    spec, model, batch, table, variables = make_child(embedding="random32", **CONVOLUTION)

    def loss(kernel):
        changed = jax.tree.map(lambda x: x, variables)
        changed["params"]["deep"]["conv"]["kernel"] = kernel
        return evaluate((spec, model, batch, table, changed)).sum()

    kernel = variables["params"]["deep"]["conv"]["kernel"]
    beyond = np.zeros(kernel.shape, bool)
    beyond[2 * 32 :, :16] = True
    value, grad = jax.value_and_grad(loss)(kernel)
    assert not grad[beyond].any() and grad[~beyond].any()
    assert float(loss(jnp.where(beyond, 100.0, kernel))) == float(value)


def test_convolution_sees_order_and_no_padding():
    child = make_child(embedding="random32", **CONVOLUTION)
    tokens = child[2].tokens.values
    swapped = tokens[:, jnp.array([1, 0, 2, 3, 4])]
    assert not np.allclose(evaluate(child), evaluate(child, tokens=ragged(swapped)), atol=1e-4)
    longer = jnp.pad(tokens, ((0, 0), (0, 4)))
    np.testing.assert_allclose(evaluate(child), evaluate(child, tokens=ragged(longer)), atol=1e-5)
    assert np.isfinite(evaluate(child, tokens=ragged(0 * tokens))).all()  # empty texts


def test_batch_norm_of_convolutions_leaves_out_padding():
    changes = {**CONVOLUTION, "conv_batch_norm": True}
    spec, model, batch, _, variables = make_child(embedding="random32", **changes)

    def train(tokens):
        inputs = batch._replace(tokens=ragged(tokens))
        return model.apply(variables, inputs, None, spec.hyperparameters, jnp.uint32(1), True)

    tokens = batch.tokens.values
    short, long = train(tokens), train(jnp.pad(tokens, ((0, 0), (0, 24))))
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_embedding_dropout_drops_whole_components():
    """A dropped component gets no gradient at any word; a kept one is scaled at all of them."""
    changes = {**CONVOLUTION, "conv_embedding_dropout": 0.5, "conv_activation": "tanh"}
    child = make_child(embedding="random32", **changes)
    spec, model, batch, _, variables = child
    num_features = 32 + 2 * 16
    # One text, read six times; its mean embedding doesn't reach the logits.
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batch)
    kernel = jnp.ones((2, num_features)).at[:, :32].set(0.0)
    variables["params"]["deep"]["kernel"] = kernel

    def responses(table, training, seed=3):
        changed = jax.tree.map(lambda x: x, variables)
        changed["params"]["deep"]["table"] = table
        hyper = spec.hyperparameters
        return model.apply(changed, batch, None, hyper, jnp.uint32(seed), training)[0][:, 0]

    table = variables["params"]["deep"]["table"]
    per_text = jax.jacrev(lambda t: responses(t, True))(table)[:, batch.tokens.values[0, :3]]
    dropped = (per_text == 0).all(1)  # [6, 32]
    assert 0.3 < dropped.mean() < 0.7
    assert ((per_text == 0).any(1) == dropped).mean() > 0.9
    assert len({tuple(row.tolist()) for row in dropped}) == 6  # each text has its own
    outputs = responses(table, True)
    assert len(set(outputs.tolist())) == 6 and (outputs != responses(table, True, 4)).all()
    assert len(set(responses(table, False).tolist())) == 1
    # As if the table had zeros in place of the dropped components, and twice the others.
    masked = responses(jnp.where(dropped[:1], 0.0, 2 * table), False)[0]
    np.testing.assert_allclose(outputs[0], masked, rtol=1e-4)
