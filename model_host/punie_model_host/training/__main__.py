"""``python -m punie_model_host.training data | tokenizer | train | export | evaluate | check``."""

from __future__ import annotations

import argparse
from pathlib import Path


def _data(args: argparse.Namespace) -> None:
    from punie_model_host.training.conversations import Generator
    from punie_model_host.training.render import render

    generator = Generator(args.seed, args.held_out_names, args.held_out_phrases)
    for _ in range(args.count):
        print(render(generator.conversation(args.kind).messages))


def _tokenizer(args: argparse.Namespace) -> None:
    from punie_model_host.training import tokenizer

    tokenizer.save(tokenizer.build(), args.out)


def _train(args: argparse.Namespace) -> None:
    import torch

    from punie_model_host.training.train import Plan, Trainer

    torch.set_num_threads(args.threads)
    plan = Plan(
        args.minutes,
        seed=args.seed,
        batch_tokens=args.batch_tokens,
        muon_rate=0.02 * args.rate,
        adam_rate=4e-3 * args.rate,
        decay_from=args.decay_from,
        drill_until=0 if args.start else 0.06,
        short_until=0 if args.start else 0.1,
        export_every=args.export_every,
        compiled=not args.eager,
    )
    Trainer(plan, args.tokenizer, args.out, args.start).run()


def _export(args: argparse.Namespace) -> None:
    from punie_model_host.training.export import publish

    publish(args.source, args.out)


def _evaluate(args: argparse.Namespace) -> None:
    from punie_model_host.training.evaluate import main

    main(args.model, args.count, args.show, args.backend)


def _check(args: argparse.Namespace) -> None:
    from punie_model_host.training.checks import main

    main(args.model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m punie_model_host.training", description=__doc__
    )
    commands = parser.add_subparsers(required=True)
    data = commands.add_parser("data", help="print conversations")
    data.add_argument("--count", type=int, default=10)
    data.add_argument("--seed", type=int, default=0)
    data.add_argument("--kind")
    data.add_argument("--held-out-names", action="store_true")
    data.add_argument("--held-out-phrases", action="store_true")
    data.set_defaults(run=_data)
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer")
    tokenizer.add_argument("--out", type=Path, required=True)
    tokenizer.set_defaults(run=_tokenizer)
    train = commands.add_parser("train", help="train one phase")
    train.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    train.add_argument("--out", type=Path, required=True, help="gets state.pt and model/")
    train.add_argument("--start", type=Path, help="a state.pt to go on from")
    train.add_argument("--minutes", type=float, default=75)
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    train.add_argument("--decay-from", type=float, default=0.5)
    train.add_argument("--batch-tokens", type=int, default=8192)
    train.add_argument("--export-every", type=float, default=300, help="seconds")
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--eager", action="store_true", help="without torch.compile")
    train.set_defaults(run=_train)
    export = commands.add_parser("export", help="publish a model folder")
    export.add_argument("--source", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    export.set_defaults(run=_export)
    evaluate = commands.add_parser("evaluate", help="exact match through mlx-lm")
    evaluate.add_argument("--model", type=Path, required=True)
    evaluate.add_argument("--count", type=int, default=40, help="conversations per kind")
    evaluate.add_argument("--backend", choices=["mlx", "torch"], default="mlx")
    evaluate.add_argument("--show", action="store_true", help="print what went wrong")
    evaluate.set_defaults(run=_evaluate)
    check = commands.add_parser("check", help="template, tokenizer and programs agree")
    check.add_argument("--model", type=Path, required=True)
    check.set_defaults(run=_check)
    return parser


if __name__ == "__main__":
    arguments = _parser().parse_args()
    arguments.run(arguments)
