"""What the node chooses for full-size Wan2.1 on cards of 8 to 24 GiB: computed from sizes, without a card.

    python bench/choices.py [--comfyui PATH]

A GiB of each card is left to the screen, to CUDA and to ComfyUI. Prints a table; bench/README.md says what it means.
"""

import host

CARDS = (8, 12, 16, 24)
RESERVED = 1
"""GiB."""
RAM = 32
"""GiB of free RAM, of which half may hold inputs of blocks."""
MODELS = (("1.3B", "bf16"), ("14B", "fp8"), ("14B", "bf16"))
STREAMS = 2
"""By which the newest ComfyUI fetches weights from RAM, whole blocks in turn."""
PIXELS = {"512x512x1": (512, 1, 1024), "480x832x33": (632, 33, 14040), "512x512x81": (512, 81, 21504)}
"""Side of a square of as many pixels, frames, tokens."""
ROWS = 64
"""Of a caption of usual length."""
GIB = 2**30


def main() -> None:
    """Print the table."""
    host.start(host.parser("choices", __doc__.splitlines()[0]).parse_args())
    print(f"| card | model | {' | '.join(PIXELS)} |\n|{' --- |' * (2 + len(PIXELS))}")
    for card in CARDS:
        for name, weights in MODELS:
            cells = [chosen(name, weights, pixels, (card - RESERVED) * GIB) for pixels in PIXELS]
            print(f"| {card} GiB | {name} {weights} | {' | '.join(cells)} |", flush=True)


def chosen(name: str, weights: str, pixels: str, free: int) -> str:
    """The plan for one case in few words, or what would make it fit.

    Args:
        free: bytes for the weights and all else.
    """
    from wantune.trainer.base.errors import UserError
    from wantune.trainer.memory.choice import Needs, Space, choose
    from wantune.trainer.memory.sizes import Work
    from wantune.trainer.settings.memory import MemoryConfig
    from wantune.trainer.settings.training import LoraConfig, OptimizerConfig

    model, linears = sizes(name, weights)
    side, frames, tokens = PIXELS[pixels]
    needs = Needs(model=model, linears=linears, lora=LoraConfig(), optimizer=OptimizerConfig(), pins=MemoryConfig(),
                  work=Work(side=side, frames=frames, stride=4, tokens=tokens, batch_size=1, text_rows=ROWS))
    try:
        choice = choose(needs, Space(
            free=free, ram=RAM * GIB // 2, offloads=True, streams=STREAMS, fetches_blocks=True))
    except UserError as error:
        return f"does not fit: {str(error).split('; ')[-1]}"
    again = max(0, choice.blocks - choice.plan.whole_blocks)
    words = [f"{choice.parts.total / GIB:.1f} GiB",
             f"{again} of {choice.blocks} blocks again" if again else "nothing again"]
    if choice.plan.inputs_in_ram:
        words.append("inputs in RAM")
    if choice.parts.offloaded:
        words.append(f"{choice.parts.offloaded / GIB:.1f} GiB of weights in RAM")
    return ", ".join(words)


def sizes(name: str, weights: str) -> tuple:
    """The ModelSize of a full-size transformer, and (out_features, in_features) of the Linears that get an adapter."""
    from wantune.bench import full_size
    from wantune.bench.rivals import HEAD_WIDTH
    from wantune.trainer.memory.sizes import ModelSize
    from wantune.trainer.model.wan21 import WAN21_T2V

    dtype, own = full_size.WEIGHTS[weights], full_size.DITS[name]
    tensors = full_size.dit_weights(name, dtype, "meta").tensors
    linears = {f"blocks.{number}.{linear}": tuple(tensors[f"blocks.{number}.{linear}.weight"].shape)
               for number in range(own["layers"]) for linear in WAN21_T2V.trained}
    model = ModelSize(
        dim=own["dim"], ffn_dim=own["ffn_dim"], heads=own["dim"] // HEAD_WIDTH, blocks=own["layers"],
        weights=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        block_values=sum(rows * columns for rows, columns in linears.values()) // own["layers"],
        value=2, are_cast=weights in full_size.FP8, stored=sum(
            tensor.numel() * tensor.element_size() for key, tensor in tensors.items() if key.startswith("blocks.0.")))
    return model, linears


if __name__ == "__main__":
    main()
