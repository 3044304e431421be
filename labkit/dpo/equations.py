"""The equations of Diffusion-DPO (arXiv 2311.12908), HG-DPO (2405.20216) and their relatives: one function each.

    DPO of language models (2305.18290)
                    eq. 4       p* = p_ref exp(r / beta) / Z              `labkit.dpo.preference.aligned_density`
                    eq. 7       its loss: with -kappa e for log p         `dpo_loss`
    Diffusion-DPO   eq. 4       Bradley-Terry likelihood of votes         `labkit.dpo.preference.fit_bradley_terry`
                    eq. 7, 14   difference of the implicit rewards        `dpo_logit`
                    eq. 8-13    steps towards 14, never computed
                    eq. 14      the loss                                  `dpo_loss`
                                four meanings of the printed beta         `kappa_of`
    HG-DPO          sec. 3      best and worst of N candidates            `labkit.dpo.pool.best_and_worst`
                    sec. 3.1    statistics matching                       `statistics_loss`
                    sec. 3      SDRecon                                   `labkit.dpo.recon.sd_recon`
                                how far a DDPM step moves, c_t            `step_coefficient`
    Relatives                   label smoothing and margin                `conservative_dpo_loss`
                                IPO, hinge, NPO, SDPO, MaPO               `ipo_loss`, `hinge_loss`, ...
                                Kahneman-Tversky, KTO (2404.04465)        `kto_loss`

An error e [B] is the mean over a latent's elements of (eps_theta(x_t, t) - eps)^2. A pair has four: of the winner w and
of the loser l, each under the policy and under the frozen reference (ref_).

    D = (e_w - e_ref,w) - (e_l - e_ref,l),      s = -kappa D,      loss = -log sigmoid(s)

Losses are per pair [B], so that batches may be cut, weighted and averaged by the caller.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def epsilon_error(prediction: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The error e of eq. 14 as a mean over elements, in float32 whatever comes in.

    In bfloat16 the rounding of the mean alone is a logit of about 0.8 at kappa 2500.

    Args:
        prediction: eps_theta(x_t, t), [B, ...].
        noise: eps, of the same shape.

    Returns:
        e, [B].
    """
    return (prediction.float() - noise.float()).square().flatten(1).mean(1)


def kappa_of(beta: float, summed: bool, half: bool, elements: int) -> float:
    """kappa, the strength per unit of the element MEAN of the squared error, of a published beta.

        source                    error    logit              printed beta   kappa
        paper, eq. 14             sum      -beta D            2000 .. 5000   beta * elements
        authors' code             mean     -beta / 2 D        5000           2500
        diffusers, SD script      mean     -beta D            2500           2500
        diffusers, SDXL script    mean     -beta / 2 D        5000           2500

    Args:
        beta: the printed number.
        summed: the source sums the squared error over the elements of a latent instead of averaging it.
        half: its logit has a factor 1/2.
        elements: C * h * w of a latent (16,384 for Stable Diffusion at 512 pixels).

    Returns:
        kappa.
    """
    kappa = beta * elements if summed else beta
    return kappa / 2 if half else kappa


def dpo_logit(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
) -> torch.Tensor:
    """s, what stands inside the sigmoid of eq. 14: the winner's implicit reward (eq. 7) minus the loser's.

    Args:
        winner, loser, ref_winner, ref_loser: errors e_w, e_l, e_ref,w, e_ref,l, [B] each.
        kappa: strength per unit of mean error.

    Returns:
        s = -kappa D, [B]: positive where the policy, compared with the reference, prefers the winner.
    """
    return -kappa * ((winner - ref_winner) - (loser - ref_loser))


def dpo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
) -> torch.Tensor:
    """The Diffusion-DPO loss (arXiv 2311.12908, eq. 14): -log sigmoid(-kappa [(e_w - e_ref,w) - (e_l - e_ref,l)]).

    kappa is the paper's beta T omega times the elements of a latent (`kappa_of`), because e is a mean.

    Args:
        winner, loser, ref_winner, ref_loser: errors e_w, e_l, e_ref,w, e_ref,l, [B] each.
        kappa: strength per unit of mean error; small values allow a large drift from the reference.

    Returns:
        The loss, [B]; ln 2 where policy and reference agree.
    """
    difference = (winner - ref_winner) - (loser - ref_loser)  # D [B]
    return -torch.nn.functional.logsigmoid(-kappa * difference)


def implicit_accuracy(s: torch.Tensor) -> torch.Tensor:
    """Share of pairs that the implicit reward orders rightly; ties count a half.

    The health of a training run (0.5 before it), not the quality of its images.

    Args:
        s: logits (`dpo_logit`), [B].

    Returns:
        A share, [].
    """
    return (s > 0).float().mean() + 0.5 * (s == 0).float().mean()


def conservative_dpo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
    label_smoothing: float = 0.0,
    margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """DPO with label smoothing q and a margin m: -(1 - q) log sigmoid(s - m) - q log sigmoid(m - s).

    Args:
        winner, loser, ref_winner, ref_loser, kappa: as in `dpo_loss`, which this is for q = m = 0.
        label_smoothing: q, the share of labels believed to be wrong, 0 .. 0.5.
        margin: m, how much s is asked for, [B] or one number: more where the scores differ more.

    Returns:
        The loss, [B].

    Raises:
        ValueError: label_smoothing is not in 0 .. 0.5.
    """
    if not 0.0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 .. 0.5 (a share of wrong labels)")
    s = dpo_logit(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser, kappa=kappa) - margin
    return -(1 - label_smoothing) * logsigmoid(s) - label_smoothing * logsigmoid(-s)


def ipo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """The IPO loss (arXiv 2310.12036) with D for the log-ratio: (-D - 1 / (2 tau))^2, a fixed gap to reach.

    Args:
        winner, loser, ref_winner, ref_loser: errors, [B] each.
        tau: per unit of mean error, like kappa: 2500 asks for D = -2e-4.

    Returns:
        The loss, [B].
    """
    s = dpo_logit(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser, kappa=1.0)  # -D
    return (s - 1 / (2 * tau)).square()


def hinge_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
) -> torch.Tensor:
    """SLiC's hinge (arXiv 2305.10425) on the logit: max(0, 1 - s); pairs beyond the margin teach nothing.

    Args:
        winner, loser, ref_winner, ref_loser, kappa: as in `dpo_loss`.

    Returns:
        The loss, [B].
    """
    s = dpo_logit(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser, kappa=kappa)
    return (1 - s).clamp(min=0)


def npo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
) -> torch.Tensor:
    """Diffusion-NPO (arXiv 2505.11245): `dpo_loss` with swapped labels, for the model that guidance points away from.

    Args:
        winner, loser, ref_winner, ref_loser, kappa: as in `dpo_loss`, with the labels as the judge gave them.

    Returns:
        The loss, [B].
    """
    return dpo_loss(winner=loser, loser=winner, ref_winner=ref_loser, ref_loser=ref_winner, kappa=kappa)


def sdpo_scale(*, winner_residual: torch.Tensor, loser_residual: torch.Tensor, mu: float) -> torch.Tensor:
    """lambda of Diffusion-SDPO (arXiv 2511.03317), by which `sdpo_loss` scales the loser's gradient.

    With g = eps_theta - eps: where g_w . g_l > 0, pushing the loser away pushes the winner too, and
    lambda = clip((1 - mu) |g_w|^2 / (g_w . g_l), 0, 1) keeps e_w from rising to first order, if both images' Jacobians
    are alike. Elsewhere it is 1. One value per pair (the released code takes one per batch).

    Args:
        winner_residual, loser_residual: g_w, g_l, [B, ...].
        mu: how safe, 0 .. 1; 1 drops the loser where the gradients align.

    Returns:
        lambda, [B] in [0, 1], detached.

    Raises:
        ValueError: mu is not in 0 .. 1.
    """
    if not 0.0 <= mu <= 1.0:
        raise ValueError(f"mu is {mu}, expected 0 .. 1 (1 drops the loser where the gradients align)")
    g_w, g_l = winner_residual.detach().float().flatten(1), loser_residual.detach().float().flatten(1)
    overlap = (g_w * g_l).sum(1)
    scale = (1 - mu) * g_w.square().sum(1) / overlap.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(overlap > 0, scale.clamp(0.0, 1.0), torch.ones_like(scale))


def sdpo_loss(
    *,
    winner: torch.Tensor,
    loser: torch.Tensor,
    ref_winner: torch.Tensor,
    ref_loser: torch.Tensor,
    kappa: float,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Diffusion-SDPO (arXiv 2511.03317): the value of `dpo_loss`, the loser's gradient times lambda.

    Args:
        winner, loser, ref_winner, ref_loser, kappa: as in `dpo_loss`.
        scale: lambda of `sdpo_scale`, [B].

    Returns:
        The loss, [B].
    """
    loser = scale * loser + (1 - scale) * loser.detach()
    return dpo_loss(winner=winner, loser=loser, ref_winner=ref_winner, ref_loser=ref_loser, kappa=kappa)


def mapo_loss(*, winner: torch.Tensor, loser: torch.Tensor, weight: float = 0.1, scale: float = 1000.0) -> torch.Tensor:
    """MaPO (arXiv 2406.06424), without a reference: e_w - weight log sigmoid(scale (f(e_w) - f(e_l))).

    f(e) = (e / 2) / (exp(e / 2) - 1). Near e = 0, scale * f has slope -scale / 4: about DPO at kappa 250, plus SFT.

    Args:
        winner, loser: errors e_w, e_l, [B] each.
        weight: of the preference term.
        scale: T of the released code.

    Returns:
        The loss, [B].
    """

    def f(e: torch.Tensor) -> torch.Tensor:
        half = (0.5 * e).clamp(min=1e-12)  # f(0) = 1
        return half / torch.expm1(half)

    return winner - weight * logsigmoid(scale * (f(winner) - f(loser)))


def kto_loss(
    *,
    liked: torch.Tensor,
    ref_liked: torch.Tensor,
    disliked: torch.Tensor,
    ref_disliked: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Diffusion-KTO loss (arXiv 2404.04465), for likes and dislikes that need not be pairs:
    1 - sigmoid(+-beta (g - k)).

    The Kahneman-Tversky utility: g = e_ref - e of an image, + for liked images. k, the reference point, is the batch's
    mean g, detached; the released code has three variants of it, and others clamp it at 0, which is not done here.

    Args:
        liked, ref_liked: errors of liked images under policy and reference, [A].
        disliked, ref_disliked: of disliked ones, [B].
        beta: per unit of mean error, like kappa.

    Returns:
        The losses of the liked [A] and of the disliked images [B].
    """
    g_liked, g_disliked = ref_liked - liked, ref_disliked - disliked
    k = torch.cat([g_liked, g_disliked]).detach().mean()
    return 1 - torch.sigmoid(beta * (g_liked - k)), 1 - torch.sigmoid(-beta * (g_disliked - k))


def step_coefficient(t: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """c_t = beta_t / (sqrt(alpha_t) sqrt(1 - alpha_bar_t)): how far a DDPM step (2006.11239, eq. 11) moves per unit of
    predicted noise; the weight in HG-DPO's statistics matching.

    Args:
        t: timesteps, int [B].
        alphas_cumprod: alpha_bar, [T]; alpha_bar_{-1} is 1.

    Returns:
        c_t, float32 [B].
    """
    abar = alphas_cumprod.cpu().double()  # on the CPU: some accelerators have no float64
    before = torch.cat([abar.new_ones(1), abar[:-1]])  # alpha_bar_{t-1}
    alpha = abar / before
    coefficient = (1 - alpha) / (alpha.sqrt() * (1 - abar).sqrt())  # [T]
    return coefficient[t.cpu()].float().to(t.device)


def statistics_loss(eps: torch.Tensor, eps_ref: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """L_stat, HG-DPO's statistics matching (section 3.1), in closed form: c_t^2 |mean_c(eps_theta - eps_ref)|^2.

    The paper takes one DDPM step with the policy and one with the base model and compares the channel means of the
    results. With shared sampling noise these differ by c_t mean_c(eps_theta - eps_ref): no further forward pass.

    Args:
        eps, eps_ref: predicted noise of policy and base model, [B, C, h, w]; no gradient reaches eps_ref.
        c: c_t of `step_coefficient`, [B].

    Returns:
        The loss, [B].
    """
    shift = (eps.float() - eps_ref.detach().float()).mean((2, 3))  # [B, C]
    return c.square() * shift.square().sum(1)
