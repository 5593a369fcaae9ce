"""What ends a whole job: whose fault it is, and words for whoever wanted the image."""

from grange.client.image_models import Failure


class JobError(Exception):
    """A job that cannot be done; `grange.client.image_models.EvaluationResult` tells of it."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure: Failure = failure
