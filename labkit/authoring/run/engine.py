"""papermill's engine, saving less often.

papermill writes the whole notebook before and after every cell, text cells included: with pictures of 10 MB inside it,
hundreds of writes take longer than many a lesson's cells. Here it is written at the start, at the end, when a cell has
failed, and otherwise at most every `SAVE_SECONDS`, so that of a job that is killed no more than that is missing.
"""

from __future__ import annotations

from typing import Any

from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

NAME = "labkit"
SAVE_SECONDS = 10.0


class SparingManager(NotebookExecutionManager):
    """A notebook under execution that is written when there is something to lose."""

    saved = False

    def save(self, **kwargs: Any) -> None:
        """Write the notebook, unless it goes on and was written moments ago."""
        ended = self.end_time is not None or self.nb.metadata.papermill["exception"]
        if ended or not self.saved or (self.now() - self.last_save_time).total_seconds() >= SAVE_SECONDS:
            super().save(**kwargs)
            self.saved = True


class SparingEngine(NBClientEngine):
    """`NBClientEngine` with a `SparingManager`; papermill offers no option for it."""

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool = True,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        **kwargs: Any,
    ) -> Any:
        """As `Engine.execute_notebook`, whose lines these are; returns the executed notebook."""
        manager = SparingManager(
            nb,
            output_path=output_path,
            progress_bar=progress_bar,
            log_output=log_output,
            autosave_cell_every=autosave_cell_every,
        )
        manager.notebook_start()
        try:
            cls.execute_managed_notebook(manager, kernel_name, log_output=log_output, **kwargs)
        finally:
            manager.cleanup_pbar()
            manager.notebook_complete()
        return manager.nb


papermill_engines.register(NAME, SparingEngine)
