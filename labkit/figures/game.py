"""The feedback game: pictures of a round with thumbs, the next round follows the votes, a target is to be found.

    FeedbackGame(loop, score, goal=0.6, rounds=4, target=picture)

The player sees `target`, the model does not. `rounds` is the budget of the comparison: whoever needs more may play on,
and the status says so. `loop` generates and keeps the rounds (a `labkit.fabric.FeedbackLoop` or
anything with its methods), `score` maps images [B, 3, H, W] to B numbers that say how near the target they are. Without
widgets, or with `interactive=False`, the first round stands there as a picture. `vote`, `next_round` and `undo` are
what the buttons call: they can be tested, or called from a cell. Buttons and votes are ordinary form elements: Tab
moves between them, arrow keys change a vote, Space presses.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from labkit.course.i18n import get_language, t
from labkit.course.render import is_interactive
from labkit.figures.grids import image_grid
from labkit.figures.images import as_pixels, png_bytes

LIKE, NEUTRAL, DISLIKE = 1, 0, -1
IMAGE_WIDTH = 144  # pixels on the screen


class FeedbackGame:
    """One game. `votes` are those on the current round, `best` is the highest score so far, `won` if it reaches the
    goal, `found` the round in which that happened first."""

    def __init__(
        self,
        loop: Any,
        score: Callable[[Any], Any],
        *,
        goal: float,
        rounds: int | None = None,
        target: Any = None,
        interactive: bool | None = None,
        lang: str | None = None,
    ):
        self.loop, self.score, self.goal, self.target = loop, score, float(goal), target
        self.rounds = rounds
        self.interactive, self._lang = interactive, lang or get_language()
        if not loop.rounds:
            loop.generate()
        self.votes = [NEUTRAL] * len(self.images)
        self.widget: Any = None

    @property
    def images(self) -> Any:
        """The pictures of the current round."""
        return self.loop.rounds[-1].images

    def _best_of_rounds(self) -> list[float]:
        return [max(float(value) for value in self.score(one.images)) for one in self.loop.rounds]

    @property
    def best(self) -> float:
        return max(self._best_of_rounds())

    @property
    def won(self) -> bool:
        return self.best >= self.goal

    @property
    def found(self) -> int | None:
        """Number of the first round, from 1, with a picture that reaches the goal; None so far."""
        return next((k + 1 for k, best in enumerate(self._best_of_rounds()) if best >= self.goal), None)

    @property
    def status(self) -> str:
        """Where the game stands, in one line."""
        played, found, budget = len(self.loop.rounds), self.found, self.rounds
        values = {"lang": self._lang, "number": played, "best": self.best, "goal": self.goal}
        if found is None and budget is None:
            return t("game.round", **values)
        if found is None:
            return t("game.round_of" if played <= budget else "game.over", rounds=budget, **values)
        if budget is not None and found > budget:
            return t("game.late", found=found, rounds=budget, **values)
        pictures = sum(len(one.images) for one in self.loop.rounds[:found])
        return t("game.won", found=found, pictures=pictures, **values)

    def vote(self, image: int, value: int) -> None:
        """LIKE, DISLIKE or NEUTRAL for one picture of the current round."""
        if not 0 <= image < len(self.votes) or value not in (LIKE, NEUTRAL, DISLIKE):
            raise ValueError(f"vote({image}, {value}): expected an image below {len(self.votes)} and 1, 0 or -1")
        self.votes[image] = value

    def next_round(self) -> None:
        """Tell the loop the votes and generate the next round."""
        liked = [i for i, vote in enumerate(self.votes) if vote == LIKE]
        disliked = [i for i, vote in enumerate(self.votes) if vote == DISLIKE]
        self.loop.feedback(liked=liked, disliked=disliked)
        self.loop.generate()
        self.votes = [NEUTRAL] * len(self.images)

    def undo(self) -> bool:
        """Go back one round, to the votes given there; False in the first round."""
        if len(self.loop.rounds) < 2:
            return False
        self.loop.undo()
        last = self.loop.rounds[-1]
        self.votes = [
            LIKE if i in last.liked else DISLIKE if i in last.disliked else NEUTRAL for i in range(len(self.images))
        ]
        return True

    def figure(self) -> Any:
        """The target and the current round as a course figure: scores, and votes as frames."""
        images, captions, scores = list(self.images), self._captions(), self._scores()
        first = 0
        if self.target is not None:
            images, captions, scores = [self.target, *images], [self._target_name, *captions], [float("nan"), *scores]
            first = 1
        roles = {LIKE: "good", DISLIKE: "bad"}
        frames = {first + i: roles[vote] for i, vote in enumerate(self.votes) if vote in roles}
        return image_grid(
            images, captions, scores, columns=len(images), title=self.status, frames=frames, lang=self._lang
        )

    @property
    def _target_name(self) -> str:
        return t("game.target", lang=self._lang)

    def _captions(self) -> list[str]:
        return [t("game.image", lang=self._lang, number=i + 1) for i in range(len(self.images))]

    def _scores(self) -> list[float]:
        return [float(value) for value in self.score(self.images)]

    def build(self) -> Any:
        """Make the ipywidgets (once) and return their box."""
        if self.widget is not None:
            return self.widget
        import ipywidgets

        options = [(t(f"game.{name}", lang=self._lang), value) for name, value in _VOTES]
        self.pictures = [ipywidgets.Image(format="png", width=IMAGE_WIDTH) for _ in self.votes]
        self.choices = [
            ipywidgets.RadioButtons(options=options, value=NEUTRAL, layout={"width": f"{IMAGE_WIDTH}px"})
            for _ in self.votes
        ]
        for number, one in enumerate(self.choices):
            one.observe(lambda change, number=number: self.vote(number, change["new"]), names="value")
        self.next_button = ipywidgets.Button(description=t("game.next", lang=self._lang), button_style="primary")
        self.undo_button = ipywidgets.Button(description=t("game.undo", lang=self._lang))
        self.next_button.on_click(lambda _: self._step(self.next_round))
        self.undo_button.on_click(lambda _: self._step(self.undo))
        self.line = ipywidgets.HTML()
        self.scores = [ipywidgets.HTML() for _ in self.votes]
        columns = [ipywidgets.VBox(one) for one in zip(self.pictures, self.scores, self.choices, strict=True)]
        if self.target is not None:
            shown = ipywidgets.Image(format="png", width=IMAGE_WIDTH, value=png_bytes(as_pixels(self.target)))
            columns.insert(0, ipywidgets.VBox([shown, ipywidgets.HTML(html.escape(self._target_name))]))
        help_line = ipywidgets.HTML(html.escape(t("game.help", lang=self._lang)))
        buttons = ipywidgets.HBox([self.next_button, self.undo_button])
        row = ipywidgets.HBox(columns, layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([help_line, row, buttons, self.line])
        self._show()
        return self.widget

    def _step(self, action: Callable[[], Any]) -> None:
        done = action()
        self._show()
        if done is False:
            self.line.value = html.escape(t("game.nothing", lang=self._lang))

    def _show(self) -> None:
        votes = list(self.votes)
        for number, image in enumerate(self.images):
            self.pictures[number].value = png_bytes(as_pixels(image))
            self.choices[number].value = votes[number]
        for label, name, value in zip(self.scores, self._captions(), self._scores(), strict=True):
            label.value = html.escape(f"{name}: {value:.2f}")
        self.votes = votes
        self.line.value = f'<div role="status">{html.escape(self.status)}</div>'

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.figure())
        if is_interactive() if self.interactive is None else self.interactive:
            display(self.build())


_VOTES = (("like", LIKE), ("neutral", NEUTRAL), ("dislike", DISLIKE))
