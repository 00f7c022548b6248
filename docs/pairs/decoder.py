"""A decoder with teacher forcing: the true last word is the input of each step, and each step scores all words.

While training nothing depends on the scores, so they can be computed at each step or once for all of them.

    python -m harness pair docs/pairs/decoder.py
"""

import torch

T, B, E, H, V = 30, 16, 64, 128, 1000  # steps, batch, embedding, hidden, words

FRAMEWORK = "torch"
GRADIENTS = ["w_h", "w_out", "b_out"]


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32) / shape[-2] ** 0.5

    words = torch.randint(V, (T, B), generator=generator)
    return words, drawn(V, E), drawn(E, H), drawn(H, H), drawn(H, V), torch.zeros(V, dtype=torch.float32)


def score_each_step(words, embedding, w_x, w_h, w_out, b_out):
    h, scores = embedding.new_zeros(B, H), []
    for x in embedding[words].unbind():
        h = torch.tanh(x @ w_x + h @ w_h)
        scores.append(h @ w_out + b_out)
    return torch.stack(scores)


def score_once(words, embedding, w_x, w_h, w_out, b_out):
    h, hs = embedding.new_zeros(B, H), []
    for x in embedding[words].unbind():
        h = torch.tanh(x @ w_x + h @ w_h)
        hs.append(h)
    return torch.stack(hs) @ w_out + b_out


CANDIDATES = [score_each_step, score_once]
