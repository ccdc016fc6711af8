"""Log-probabilities of tokens: what the model itself thinks of them, before temperature, top-k and top-p."""

from collections.abc import Sequence

from torch import Tensor

from mint_stream.messages.inference import LikelyToken, TokenLogprob


def token_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """log softmax(logits)[token] of each row, and the row's `tops` largest; logits [rows, vocabulary]."""
    if not tokens:
        return []
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, logprobs.new_tensor(tokens).long()[:, None]).squeeze(-1).tolist()
    values, ids = (side.tolist() for side in logprobs.topk(max(1, *tops), dim=-1))
    alike = zip(tokens, own, tops, ids, values, strict=True)
    return [
        TokenLogprob(token=token, logprob=logprob, top=tuple(map(_likely, best[:top], theirs[:top])))
        for token, logprob, top, best, theirs in alike
    ]


def _likely(token: int, logprob: float) -> LikelyToken:
    return LikelyToken(token=token, logprob=logprob)
