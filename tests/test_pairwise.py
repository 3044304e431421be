"""PC-CLIP: geometry of differences, the loss and its floors, sentences, pairs, prompting, products, alarms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.pairwise import (
    ORDERS,
    Pair,
    Statement,
    TemplateWriter,
    attribute_ranking,
    choose_held_out,
    comparative_prompt,
    comparative_prompts,
    confused_pairs,
    contrastive_loss,
    counterfactual_pairs,
    difference,
    difference_based_classification,
    difference_retrieval,
    directed_statements,
    duplicate_floor,
    evaluate_pairs,
    image_bootstrap,
    interpolate,
    loss_floor,
    mean_gap,
    mirrored_choice,
    natural_pairs,
    portrait_wording,
    sentence,
    shuffled_texts,
    squared_loss,
    swap_markers,
    unit,
)
from labkit.pairwise.equations import two_sided_cross_entropy
from labkit.pairwise.evaluate import auroc, mirror_cosine
from labkit.pairwise.inspection import (
    alarm_rates,
    alarm_threshold,
    embedding_distance,
    patch_distance,
    pixel_distance,
    sentence_alarm,
)
from labkit.pairwise.pairs import Codes, all_comparisons
from labkit.pairwise.wording import FORMS, read
from labkit.portraits import sample_specs
from labkit.worlds.products import PARTS, PRODUCT_WORDING, Photo, ProductSpec, render_products, sample_products

WORDING = portrait_wording()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(randn(d, d, seed=9))[0]


# ---- differences --------------------------------------------------------------------------------------------------


def test_exchanging_the_images_negates_the_difference_exactly():
    a, b = unit(randn(20, 8)), unit(randn(20, 8, seed=1))
    assert torch.equal(difference(a, b), -difference(b, a))
    torch.testing.assert_close(difference(a, b).norm(dim=-1), torch.ones(20))


def test_a_difference_worked_out_by_hand():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(difference(a, b), torch.tensor([[0.4, -0.8]]) / 0.8**0.5)


def test_rows_up_to_eps_have_no_direction_and_longer_ones_have_one():
    x = torch.tensor([[0.5, 0.0], [0.0, -0.75]])
    assert unit(x, 0.5).tolist() == [[0.0, 0.0], [0.0, -1.0]]
    assert unit(x * 1e-6, 1e-9).tolist() == [[1.0, 0.0], [0.0, -1.0]]
    assert unit(x * 1e-5).tolist() == [[1.0, 0.0], [0.0, -1.0]] and unit(x * 1e-6).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    x = torch.tensor([[2e-7, 0.0]], requires_grad=True)
    unit(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0]]
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])  # 0.894 apart
    assert difference(a, b, 0.9).tolist() == [[0.0, 0.0]] and float(difference(a, b, 0.89).norm()) == pytest.approx(1)


def test_identical_images_give_zeros_where_plain_normalisation_gives_nan():
    a = unit(randn(3, 8))
    assert torch.equal(difference(a, a.clone()), torch.zeros(3, 8))
    zero = a - a
    assert (zero / zero.norm(dim=-1, keepdim=True)).isnan().all()


def test_raw_differences_telescope_and_obey_the_chord_identity():
    a, b, c = (unit(randn(10, 8, seed=s)) for s in range(3))
    torch.testing.assert_close((a - b) + (b - c), a - c, atol=1e-6, rtol=0)
    torch.testing.assert_close((a - b).square().sum(-1), 2 - 2 * (a * b).sum(-1), atol=1e-6, rtol=0)
    assert (a - b).norm(dim=-1).max() <= 2


def test_lengths_of_encoder_outputs_would_matter_so_only_unit_vectors_are_taken():
    a, b = randn(10, 8), randn(10, 8, seed=1)
    scales = torch.rand(10, 1, generator=generator(2)) * 5 + 0.1
    torch.testing.assert_close(difference(unit(a * scales), unit(b)), difference(unit(a), unit(b)), atol=1e-5, rtol=0)
    assert (unit(a * scales - b) - unit(a - b)).abs().max() > 0.2  # what would happen without
    with pytest.raises(ValueError, match="u_i holds embeddings that are NaN or not of length 1"):
        difference(a * scales, unit(b))


def test_a_common_offset_cancels_in_the_raw_difference():
    a, b, gap = randn(10, 8), randn(10, 8, seed=1), randn(1, 8, seed=2)
    torch.testing.assert_close((a + gap) - (b + gap), a - b, atol=1e-6, rtol=0)


def test_a_length_may_be_off_by_what_rounding_does_and_no_more():
    one = torch.tensor([[0.6, 0.8]])
    assert torch.isfinite(difference(1.009 * one, 0.991 * one.flip(1))).all()
    grid = unit(randn(2, 3, 5)), unit(randn(2, 3, 5, seed=1))  # [..., d]
    assert torch.equal(difference(*grid)[1], difference(grid[0][1], grid[1][1]))
    for name, pair in (("u_i", (1.011 * one, one)), ("u_j", (one, 0.989 * one))):
        with pytest.raises(ValueError, match=f"^{name} holds embeddings that are NaN or not of length 1"):
            difference(*pair)


def test_bad_embeddings_are_refused():
    with pytest.raises(ValueError, match="equal shape"):
        difference(unit(randn(2, 8)), unit(randn(3, 8)))
    with pytest.raises(ValueError, match="u_j holds embeddings that are NaN"):
        difference(unit(randn(2, 8)), randn(2, 8) / 0)


# ---- loss ---------------------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.floats(0.05, 2.0))
def test_symmetries_of_the_loss(batch, tau):
    x, y = unit(randn(batch, 6)), unit(randn(batch, 6, seed=1))
    value = contrastive_loss(x, y, tau)
    order, q = torch.randperm(batch, generator=generator(3)), rotation(6)
    for other in (
        contrastive_loss(y, x, tau),
        contrastive_loss(x[order], y[order], tau),
        contrastive_loss(-x, -y, tau),
        contrastive_loss(x @ q, y @ q, tau),
    ):
        torch.testing.assert_close(other, value, atol=2e-5, rtol=1e-5)


def test_permuting_one_side_alone_changes_the_loss():
    x = unit(randn(6, 6))
    assert contrastive_loss(x, x.roll(1, 0), 0.1) > contrastive_loss(x, x, 0.1) + 1


def test_a_batch_of_one_costs_nothing_and_collapse_costs_ln_b():
    one = unit(randn(1, 6))
    assert float(contrastive_loss(one, unit(randn(1, 6, seed=1)), 0.1)) == 0
    torch.testing.assert_close(contrastive_loss(one.expand(16, 6), one.expand(16, 6), 0.1), torch.tensor(16.0).log())


@pytest.mark.parametrize(("batch", "tau"), [(2, 1.0), (5, 0.5), (8, 0.1)])
def test_a_simplex_attains_the_floor_and_nothing_goes_below(batch, tau):
    simplex = unit(torch.eye(batch) - 1 / batch)
    assert float(contrastive_loss(simplex, simplex, tau)) == pytest.approx(loss_floor(batch, tau), abs=1e-5)
    for seed in range(20):
        x, y = unit(randn(batch, batch, seed=seed)), unit(randn(batch, batch, seed=seed + 50))
        assert float(contrastive_loss(x, y, tau)) > loss_floor(batch, tau)


def test_floor_of_the_papers_setting():
    assert loss_floor(512, 1.0) == pytest.approx(5.240, abs=5e-4)
    assert loss_floor(512, 0.1) == pytest.approx(0.02, abs=5e-3)
    assert math.log(512) == pytest.approx(6.238, abs=5e-4)
    assert loss_floor(1, 1.0) == 0


def test_the_loss_falls_when_a_matched_pair_gets_closer():
    y = torch.eye(3)
    x = torch.eye(3)
    values = []
    for angle in (1.0, 0.6, 0.2):
        x = torch.eye(3)
        x[0] = torch.tensor([math.cos(angle), 0.0, math.sin(angle)])
        x[0, 1], x[0, 2] = x[0, 2] / 2**0.5, x[0, 2] / 2**0.5
        values.append(float(contrastive_loss(x, y, 0.3)))
    assert values[0] > values[1] > values[2]


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = 5 * randn(6, 6)
    torch.testing.assert_close(
        two_sided_cross_entropy(logits + 3), two_sided_cross_entropy(logits), atol=1e-5, rtol=1e-6
    )
    by_row = logits + randn(6, 1, seed=1)  # a constant per row is no such thing: the columns notice
    assert (two_sided_cross_entropy(by_row) - two_sided_cross_entropy(logits)).abs() > 0.01


def test_repeated_sentences_need_several_positives():
    d = unit(randn(6, 6))
    text = d.clone()
    text[1] = text[0]
    one_hot = torch.eye(6, dtype=torch.bool)
    same = one_hot.clone()
    same[0, 1] = same[1, 0] = True
    torch.testing.assert_close(contrastive_loss(text, d, 0.1, one_hot), contrastive_loss(text, d, 0.1))
    assert duplicate_floor(one_hot) == 0
    assert duplicate_floor(same) == pytest.approx(2 / 6 * math.log(2))
    d[1] = d[0]
    assert float(contrastive_loss(text, d, 1e-3, one_hot)) >= 2 / 6 * math.log(2) - 1e-6  # however cold
    assert float(contrastive_loss(text, d, 1e-3, same)) == pytest.approx(duplicate_floor(same), abs=1e-4)


def test_two_sided_cross_entropy_worked_out_by_hand_where_rows_and_columns_differ():
    logits = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 2.0]]).log()  # 2 rows, 3 columns
    positives = torch.tensor([[True, True, False], [False, False, True]])
    rows = ((math.log(4) + math.log(2)) / 2 + math.log(3)) / 2  # 1/4 and 2/4 in the first row, 2/6 in the second
    columns = (math.log(4) + math.log(1.5) + math.log(1.5)) / 3  # 1/4, 2/3, 2/3
    assert float(two_sided_cross_entropy(logits, positives)) == pytest.approx((rows + columns) / 2)
    assert float(two_sided_cross_entropy(logits.T, positives.T)) == pytest.approx((rows + columns) / 2)


def test_who_is_positive_of_whom_is_not_taken_the_other_way_round():
    logits = randn(4, 4)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 1] = positives[0, 3] = positives[2, 1] = True  # sentence 0 is true of pairs 1 and 3, not they of it

    def side(table, true):
        losses = []
        for row, wanted in zip(table, true, strict=True):
            own = [float(row.logsumexp(0) - row[c]) for c in range(len(row)) if wanted[c]]
            losses.append(sum(own) / len(own))
        return sum(losses) / len(losses)

    expected = (side(logits, positives) + side(logits.T, positives.T)) / 2
    assert float(two_sided_cross_entropy(logits, positives)) == pytest.approx(expected, abs=1e-6)
    assert float(two_sided_cross_entropy(logits, positives.T)) != pytest.approx(expected, abs=1e-2)
    # entropies: rows of 3, 1, 2 and 1 positives, columns of 1, 3, 1 and 2
    assert duplicate_floor(positives) == pytest.approx((math.log(3) + math.log(2)) / 4)
    one_for_all = torch.eye(4, dtype=torch.bool)
    one_for_all[0] = True  # rows of 4, 1, 1, 1, columns of 1, 2, 2, 2
    for table in (one_for_all, one_for_all.T):
        assert duplicate_floor(table) == pytest.approx((math.log(4) / 4 + 3 * math.log(2) / 4) / 2)


def test_the_loss_sends_gradients_to_sentences_and_differences_alike():
    text, d = unit(randn(4, 6)).requires_grad_(), unit(randn(4, 6, seed=1)).requires_grad_()
    there = torch.autograd.grad(contrastive_loss(text, d, 0.2), (text, d))
    back = torch.autograd.grad(contrastive_loss(d, text, 0.2), (text, d))
    for a, b in zip(there, back, strict=True):
        assert a.abs().min() > 0
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_squared_loss_is_that_of_the_raw_difference():
    t, u, v = unit(randn(5, 4)), unit(randn(5, 4, seed=1)), unit(randn(5, 4, seed=2))
    assert float(squared_loss(u - v, u, v)) == 0
    expected = 1 + (2 - 2 * (u * v).sum(-1)) - 2 * (t * (u - v)).sum(-1)  # |t|^2 + |u - v|^2 - 2 t.(u - v)
    torch.testing.assert_close(squared_loss(t, u, v), expected.mean())


def test_impossible_losses_are_refused():
    x = unit(randn(3, 4))
    with pytest.raises(ValueError, match="tau is 0"):
        contrastive_loss(x, x, 0)
    with pytest.raises(ValueError, match="no True"):
        contrastive_loss(x, x, 0.1, torch.zeros(3, 3, dtype=torch.bool))
    for text, differences in ((x, x[:2]), (x[:, :3], x), (x[0], x[0]), (x[None], x[None])):
        with pytest.raises(ValueError, match=r"\): expected the same \[batch, width\]$"):
            contrastive_loss(text, differences, 0.1)
    lacking = torch.tensor([[True, True], [False, False]])  # every column has one, a row has none
    for positives in (lacking, lacking.T):
        with pytest.raises(ValueError, match="^a row or column of positives has no True: every item needs a partner$"):
            two_sided_cross_entropy(torch.zeros(2, 2), positives)
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\): without positives they must be square"):
        two_sided_cross_entropy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"positives have shape \(2, 2\), expected \(2, 3\)"):
        two_sided_cross_entropy(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool))
    for batch, tau in ((0, 1.0), (4, 0.0), (4, -1.0)):
        with pytest.raises(ValueError, match=f"batch {batch} and tau {tau}: expected at least 1 and above 0"):
            loss_floor(batch, tau)
    with pytest.raises(TypeError, match=r"^batch\b.*2\.5"):
        loss_floor(2.5, 1.0)


# ---- sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wording", [WORDING, PRODUCT_WORDING], ids=["portraits", "products"])
@pytest.mark.parametrize("form", range(FORMS))
@pytest.mark.parametrize("order", ORDERS)
def test_every_single_difference_can_be_written_and_read_back(wording, form, order):
    for said in directed_statements(wording):
        assert read(sentence(said, wording, order=order, form=form), wording) == (dict(said.first), dict(said.second))


def test_two_attributes_at_once_can_be_read_back():
    said = Statement({"glasses": "none", "hair_style": "bun"}, {"glasses": "sunglasses", "hair_style": "bald"})
    text = sentence(said, WORDING)
    assert text == "the first has no glasses and hair in a bun, the second has sunglasses and a bald head"
    assert read(text, WORDING) == (dict(said.first), dict(said.second))


def test_exchanging_the_markers_gives_the_mirrored_statement_in_the_other_order():
    said = Statement({"hair_color": "red"}, {"hair_color": "black"})
    for form in range(FORMS):
        there = sentence(said, WORDING, form=form)
        assert swap_markers(there) == sentence(said.mirrored(), WORDING, order="second-first", form=form)
        assert swap_markers(swap_markers(there)) == there


def test_a_mirrored_pair_exchanges_its_images_and_what_is_said_of_them():
    said = Statement({"mood": "sad"}, {"mood": "calm"})
    mirrored = Pair(3, 8, said).mirrored()
    assert (mirrored.first, mirrored.second) == (8, 3)
    assert (dict(mirrored.statement.first), dict(mirrored.statement.second)) == ({"mood": "calm"}, {"mood": "sad"})


def test_a_clause_with_two_values_of_one_attribute_is_a_contradiction():
    first, _ = read("the first has red hair and blue hair, the second has black hair", WORDING)
    assert first == {"hair_color": "?"}


def test_impossible_sentences_are_refused():
    with pytest.raises(ValueError, match="names no difference"):
        sentence(Statement({"mood": "sad"}, {"mood": "sad"}), WORDING)
    with pytest.raises(ValueError, match="unknown attribute 'tail'"):
        sentence(Statement({"tail": "long"}, {"tail": "short"}), WORDING)
    with pytest.raises(ValueError, match="unknown mood 'angry'"):
        sentence(Statement({"mood": "angry"}, {"mood": "sad"}), WORDING)
    with pytest.raises(ValueError, match="name the same attributes"):
        Statement({"mood": "sad"}, {"beard": "none"})
    with pytest.raises(ValueError, match="order is 'random'"):
        sentence(Statement({"mood": "calm"}, {"mood": "sad"}), WORDING, order="random")
    with pytest.raises(ValueError, match="unknown attribute 'tail'"):
        portrait_wording(["tail"])


def test_the_template_writer_is_deterministic_and_mirrors_itself():
    pair = Pair(0, 1, Statement({"mood": "sad"}, {"mood": "happy"}))
    one, again = TemplateWriter(WORDING).write(pair), TemplateWriter(WORDING).write(pair)
    assert one == again
    for text in one.sentences:
        assert read(text, WORDING) == ({"mood": "sad"}, {"mood": "happy"})
    for text in one.mirrored:
        assert read(text, WORDING) == ({"mood": "happy"}, {"mood": "sad"})
    forms = {TemplateWriter(WORDING).write(Pair(i, i + 1, pair.statement)).sentences[0] for i in range(30)}
    assert len(forms) == FORMS


# ---- pairs --------------------------------------------------------------------------------------------------------


def portraits(n: int = 60) -> list[dict[str, str]]:
    return [spec.to_dict() for spec in sample_specs(n, seed=4)]


def test_natural_pairs_name_true_differences_and_never_what_is_held_out():
    values = portraits()
    held_out = choose_held_out(WORDING, 0.2, generator())
    pairs = natural_pairs(values, 200, WORDING, generator(), named=2, held_out=held_out)
    for pair in pairs:
        for a, v in pair.statement.first.items():
            w = pair.statement.second[a]
            assert v == values[pair.first][a] != values[pair.second][a] == w
            assert (a, frozenset((v, w))) not in held_out
    other = natural_pairs(values, 50, WORDING, generator(), held_out=held_out, only_held_out=True)
    for pair in other:
        assert all((a, frozenset((v, pair.statement.second[a]))) in held_out for a, v in pair.statement.first.items())
    assert {len(p.statement.attributes) for p in pairs} == {1, 2}
    assert not any(a == "glasses" and len(v) != 2 for a, v in held_out)
    assert held_out <= set(all_comparisons(WORDING))


def test_pairs_that_differ_in_nothing_are_refused():
    same = [portraits(1)[0]] * 3
    with pytest.raises(ValueError, match="only 0 of 5 pairs"):
        natural_pairs(same, 5, WORDING, generator())
    with pytest.raises(ValueError, match="differs in nothing"):
        counterfactual_pairs(same, same, WORDING)
    with pytest.raises(ValueError, match="at least 2 images"):
        natural_pairs(same[:1], 5, WORDING, generator())


def test_truth_says_which_statement_fits_which_pair():
    first, second = [{"mood": "sad", "beard": "none"}], [{"mood": "happy", "beard": "beard"}]
    said = [
        Statement({"mood": "sad"}, {"mood": "happy"}),
        Statement({"mood": "happy"}, {"mood": "sad"}),
        Statement({"beard": "none", "mood": "sad"}, {"beard": "beard", "mood": "happy"}),
        Statement({"beard": "none", "mood": "calm"}, {"beard": "beard", "mood": "happy"}),
    ]
    assert Codes(WORDING).truth(first, second, said).tolist() == [[True, False, True, False]]


# ---- evaluation ---------------------------------------------------------------------------------------------------


def axes(wording) -> dict[tuple[str, str], torch.Tensor]:
    """A basis vector for every value: a world in which the perfect answer is known."""
    names = [(a, v) for a, words in wording.items() for v in words]
    return dict(zip(names, torch.eye(len(names)), strict=True))


def perfect_images(values, wording=WORDING):
    basis = axes(wording)
    return unit(torch.stack([sum(basis[k] for k in row.items() if k in basis) for row in values]))


def perfect_reader(texts, wording=WORDING):
    basis = axes(wording)
    rows = []
    for text in texts:
        first, second = read(text, wording)
        rows.append(sum(basis[k] for k in first.items()) - sum(basis[k] for k in second.items()))
    return unit(torch.stack(rows))


def position_reader(texts, wording=WORDING):
    """Ignores "first" and "second": the clause that comes first is taken for the first image."""
    markers = [text.find("first") < text.find("second") for text in texts]
    sign = torch.tensor([1.0 if m else -1.0 for m in markers])
    return perfect_reader(texts, wording) * sign[:, None]


def test_a_perfect_reader_is_always_right():
    values = portraits()
    images, pairs = perfect_images(values), natural_pairs(values, 100, WORDING, generator())
    report = evaluate_pairs(perfect_reader, images, pairs, WORDING, generator=generator())
    assert (report.m1, report.both_right, report.low, report.high) == (1, 1, 1, 1)
    edited = [row | {"mood": "sad" if row["mood"] != "sad" else "calm"} for row in values]
    pairs = counterfactual_pairs(values, edited, WORDING)
    found = difference_retrieval(
        perfect_reader, perfect_images(values + edited), pairs, directed_statements(WORDING), WORDING
    )
    assert found["r_at_1"] == found["mrr"] == 1


def test_counterbalancing_unmasks_a_reader_of_positions():
    values = portraits()
    images, pairs = perfect_images(values), natural_pairs(values, 100, WORDING, generator())
    report = evaluate_pairs(position_reader, images, pairs, WORDING, generator=generator())
    assert report.by_order == {"first-second": 1.0, "second-first": 0.0}
    assert report.m1 == 0.5
    assert report.both_right == 0


def test_exchanging_the_images_of_all_pairs_turns_every_outcome_around():
    values = portraits()
    images, pairs = unit(randn(60, len(axes(WORDING)))), natural_pairs(values, 50, WORDING, generator())
    there = mirrored_choice(perfect_reader, images, pairs, WORDING)
    said = [Pair(p.second, p.first, p.statement) for p in pairs]  # same sentence, exchanged images
    assert torch.equal(there, 1 - mirrored_choice(perfect_reader, images, said, WORDING))


def test_the_papers_sign_test_over_all_cross_pairs_is_an_auroc():
    images, text = unit(randn(20, 8)), unit(randn(1, 8, seed=1))
    pairs = [Pair(i, j, Statement({"mood": "sad"}, {"mood": "calm"})) for i in range(8) for j in range(8, 20)]
    value = difference_based_classification(lambda texts: text.expand(len(texts), 8), images, pairs, ["x"] * len(pairs))
    assert value == auroc(images[:8] @ text[0], images[8:] @ text[0])
    exchanged = [Pair(p.second, p.first, p.statement) for p in pairs]
    back = difference_based_classification(
        lambda texts: text.expand(len(texts), 8), images, exchanged, ["x"] * len(pairs)
    )
    assert value + back == pytest.approx(1)


def test_rank_statistics_have_their_known_values():
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert auroc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert auroc(torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 0.0])) == pytest.approx(4.5 / 6)


def test_rankings_by_sentences_are_perfect_for_a_perfect_reader_and_even_for_a_reader_of_positions():
    values = portraits()
    images = perfect_images(values)
    ranked = attribute_ranking(perfect_reader, images, values, WORDING)
    assert ranked == dict.fromkeys(WORDING, 1.0)
    assert attribute_ranking(position_reader, images, values, WORDING) == dict.fromkeys(WORDING, 0.5)
    swapped = attribute_ranking(lambda texts: -perfect_reader(texts), images, values, WORDING)
    assert swapped == dict.fromkeys(WORDING, 0.0)


def test_a_perfect_reader_opposes_a_sentence_and_its_mirror():
    texts = [sentence(s, WORDING) for s in directed_statements(WORDING)]
    mirrors = [sentence(s.mirrored(), WORDING) for s in directed_statements(WORDING)]
    assert mirror_cosine(perfect_reader, texts, mirrors) == pytest.approx(-1)
    assert mirror_cosine(perfect_reader, texts, [swap_markers(m) for m in mirrors]) == pytest.approx(1)
    assert mirror_cosine(lambda t: unit(torch.ones(len(t), 3)), texts, mirrors) == pytest.approx(1)


def test_intervals_over_images_are_wider_than_over_pairs_that_share_them():
    n = 12
    pairs = [Pair(i, j, Statement({"mood": "sad"}, {"mood": "calm"})) for i in range(n) for j in range(n) if i != j]
    outcome = torch.tensor([float(p.first < 6) for p in pairs])  # decided by the first image alone
    low, high = image_bootstrap(outcome, pairs, generator=generator())
    assert high - low > 2 * 2 * 1.96 * 0.5 / len(pairs) ** 0.5
    assert low < 0.5 < high
    same = image_bootstrap(outcome, pairs, generator=generator())
    assert same == (low, high)


def test_the_interval_weighs_a_pair_with_the_counts_of_both_its_images():
    said = Statement({"mood": "sad"}, {"mood": "calm"})
    pairs = [Pair(3, 5, said), Pair(3, 8, said), Pair(5, 8, said), Pair(8, 9, said)]  # 4 images, each in 1 to 3 pairs
    outcome = torch.tensor([1.0, 0.0, 0.5, 0.0])
    got = image_bootstrap(outcome, pairs, generator=generator(2), resamples=50, level=0.8)
    means = []
    for drawn in torch.randint(4, (50, 4), generator=generator(2)).tolist():
        count = {image: drawn.count(k) for k, image in enumerate((3, 5, 8, 9))}
        weights = [count[p.first] * count[p.second] for p in pairs]
        if sum(weights):
            means.append(sum(w * o for w, o in zip(weights, outcome.tolist(), strict=True)) / sum(weights))
    expected = torch.quantile(torch.tensor(means, dtype=torch.float64), torch.tensor([0.1, 0.9]).double()).tolist()
    assert got == pytest.approx(expected)
    exchanged = [Pair(p.second, p.first, said) for p in pairs]
    assert image_bootstrap(outcome, exchanged, generator=generator(2), resamples=50, level=0.8) == pytest.approx(got)


def test_an_edited_copy_is_no_independent_image():
    pairs = [Pair(i, 8 + i, Statement({"mood": "sad"}, {"mood": "calm"})) for i in range(8)]
    outcome = torch.tensor([1.0, 0.0] * 4)
    low, high = image_bootstrap(outcome, pairs, generator=generator(), copies_of=8, resamples=4000)
    assert (low, high) == pytest.approx((0.125, 0.875), abs=0.13)  # binomial: 8 draws of 1/2


# ---- comparative prompting ----------------------------------------------------------------------------------------


def test_comparative_prompting_has_the_fixed_points_of_its_formula():
    classes, text = unit(randn(4, 8)), unit(randn(3, 8, seed=1))
    pairs = [(0, 1, text[0]), (2, 1, text[1]), (1, 3, text[2])]
    assert torch.equal(comparative_prompts(classes, pairs, 1.0), classes)
    moved = comparative_prompts(classes, pairs, 0.5)
    assert torch.equal(moved[[0, 2]], classes[[0, 2]])
    assert (moved[[1, 3]] - classes[[1, 3]]).abs().max() > 0.05
    exact = [(i, j, classes[i] - classes[j]) for i, j, _ in pairs]
    for alpha in (0.0, 0.3, 0.9):
        torch.testing.assert_close(comparative_prompts(classes, exact, alpha), classes)
    mean = classes[0] - 0.4 * text[0]
    torch.testing.assert_close(comparative_prompts(classes, pairs[:1], 0.0, beta=0.4)[1], unit(mean))


def test_a_comparative_prompt_worked_out_by_hand():
    e_i, e_j, t_ij = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.6, -0.8])
    moved = torch.tensor([0.5 * (1 - 0.5 * 0.6), 0.5 + 0.5 * 0.5 * 0.8])  # alpha 1/2, beta 1/2
    torch.testing.assert_close(comparative_prompt(e_i, e_j, t_ij, 0.5, 0.5), moved / moved.norm())
    both = comparative_prompt(torch.stack([e_i, e_j]), e_j, torch.stack([t_ij, e_i]), 0.0)
    torch.testing.assert_close(both, unit(torch.tensor([0.4 - 1, 0.8 + 1])))  # the mean of two proposals
    assert torch.equal(comparative_prompt(e_i, e_j, t_ij, 0.5), comparative_prompt(e_i, e_j, t_ij, 0.5, 1.0))


class Weights(torch.nn.Module):
    """A parameter, a mask that holds -inf, and a counter."""

    def __init__(self, weight, mask=(0.0, -math.inf), count=0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.register_buffer("mask", torch.tensor(mask))
        self.register_buffer("count", torch.tensor(count))


def test_interpolation_by_hand_mixes_floats_that_differ_and_leaves_masks_and_counters():
    base, tuned = Weights([1.0, -2.0], count=3), Weights([3.0, 4.0], count=7)
    for a, weight, count in ((0, [1, -2], 3), (0.25, [1.5, -0.5], 3), (0.75, [2.5, 2.5], 3), (1, [3, 4], 7)):
        mixed = interpolate(base, tuned, a)
        assert mixed.weight.tolist() == weight and mixed.weight.requires_grad
        assert mixed.mask.tolist() == [0.0, -math.inf] and int(mixed.count) == count
    assert base.weight.tolist() == [1, -2] and tuned.weight.tolist() == [3, 4]
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^a is {bad}, expected a number from 0 \(base\) to 1 \(tuned\)$"):
            interpolate(base, tuned, bad)
    for other in (Weights([1.0]), torch.nn.Linear(2, 1)):
        with pytest.raises(ValueError, match="^the models have different weights: pass two of one shape"):
            interpolate(base, other, 0.5)


def test_the_true_direction_at_unit_length_overshoots_between_similar_classes():
    classes = unit(torch.stack([torch.tensor([1.0, 0.1, 0.0]), torch.tensor([1.0, -0.1, 0.0])]))
    pair = [(0, 1, unit(classes[0] - classes[1]))]
    assert (comparative_prompts(classes, pair, 0.5)[1] - classes[1]).norm() > 0.2
    gap = mean_gap(classes, pair)
    torch.testing.assert_close(comparative_prompts(classes, pair, 0.5, beta=gap), classes)


def test_confused_pairs_come_from_the_confusion_matrix():
    truth = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 0, 1, 2, 2, 0])
    assert confused_pairs(predicted, truth, 3) == [(0, 1), (0, 2)]
    texts = [(0, 1, torch.tensor([1.0])), (1, 0, torch.tensor([2.0])), (0, 2, torch.tensor([3.0]))]
    mixed = shuffled_texts(texts, generator(1))
    assert [(i, j) for i, j, _ in mixed] == [(0, 1), (1, 0), (0, 2)]
    assert sorted(float(t) for *_, t in mixed) == [1, 2, 3]
    for seed in range(10):  # nobody keeps its own text, so the control cannot be the treatment by chance
        assert all(
            float(x[2]) != float(y[2]) for x, y in zip(texts, shuffled_texts(texts, generator(seed)), strict=True)
        )
    with pytest.raises(ValueError, match="1 comparatives cannot exchange"):
        shuffled_texts(texts[:1], generator())
    with pytest.raises(ValueError, match="two different numbers"):
        comparative_prompts(unit(randn(2, 3)), [(1, 1, torch.ones(3))], 0.5)


# ---- products and alarms ------------------------------------------------------------------------------------------


def test_the_same_generator_state_shows_the_same_parts_under_another_set_up():
    specs = sample_products(6, generator=generator())
    a = render_products(specs, generator=generator(1))
    assert torch.equal(a, render_products(specs, generator=generator(1)))
    brighter = render_products(specs, generator=generator(1), photo=Photo(brightness=0.2, fixed=True))
    inside = (a > -0.75) & (a < 0.75)
    torch.testing.assert_close((brighter - a)[inside], torch.full_like(a[inside], 0.2), atol=1e-5, rtol=0)
    moved = render_products(specs, generator=generator(1), photo=Photo(shift=6, fixed=True))
    torch.testing.assert_close(moved[:, :, 12:60, 12:60], a[:, :, 6:54, 6:54], atol=0.25, rtol=0)


@pytest.mark.parametrize("part", list(PARTS))
def test_every_defect_shows_more_than_tolerances_do(part):
    good, bad = ProductSpec(), ProductSpec().with_(**{part: PARTS[part][1]})
    assert good.defects == ()
    assert bad.defects == (part,)
    reference = render_products([good], generator=generator(5))[0]
    tolerance = patch_distance(render_products([good] * 20, generator=generator(6)), reference)
    defect = patch_distance(render_products([bad] * 20, generator=generator(6)), reference)
    assert defect.mean() > 1.5 * tolerance.mean()


def test_unknown_products_are_refused():
    with pytest.raises(ValueError, match="unknown paint 'gold'"):
        ProductSpec(paint="gold")
    with pytest.raises(ValueError, match="defect_rate is 2"):
        sample_products(1, generator=generator(), defect_rate=2)


def test_distances_are_zero_at_the_reference_and_grow_with_a_lamp():
    good = render_products([ProductSpec()], generator=generator())
    bright = render_products([ProductSpec()], generator=generator(), photo=Photo(brightness=0.3, fixed=True))
    for distance in (pixel_distance, patch_distance):
        assert float(distance(good, good[0])) == 0
        assert float(distance(bright, good[0])) > 0.2
    u = unit(randn(3, 8))
    assert float(embedding_distance(u, u[0])[0]) == 0
    defects = unit(randn(4, 8, seed=2))
    assert float(sentence_alarm(u, u[0], defects)[0]) == 0


def test_a_threshold_keeps_the_share_of_false_alarms_it_was_set_for():
    scores = torch.arange(100.0)
    threshold = alarm_threshold(scores, 0.05)
    rates = alarm_rates(torch.cat([scores, scores + 50]), [False] * 100 + [True] * 100, threshold)
    assert rates == {"false_alarms": 0.05, "missed": 0.45}
    with pytest.raises(ValueError, match="use at least 20"):
        alarm_threshold(scores[:10], 0.05)
    with pytest.raises(ValueError, match="both kinds are needed"):
        alarm_rates(scores, [True] * 100, threshold)
