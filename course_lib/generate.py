"""Text to video from the command line: ``python -m course_lib.generate "a 3 moving left" --out three.gif``."""

import argparse
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Generate one video and write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.generate", description=main.__doc__)
    parser.add_argument("prompt", help='for example "a 3 moving left"')
    parser.add_argument("--out", type=Path, default=Path("video.gif"), help="a .gif or .png (animated) file")
    parser.add_argument("--checkpoint", type=Path, help="a generator file or a run's folder; default: the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, help="default: all that the checkpoint makes")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--as-is", action="store_true", help="do not complete the prompt to a full description first")
    options = parser.parse_args(arguments)

    from course_lib.video_generator import VideoGenerator  # torch takes seconds to import: not for --help

    began = time.perf_counter()
    try:
        generator = VideoGenerator.from_checkpoint(options.checkpoint)
        video = generator.generate(
            options.prompt,
            options.seed,
            frames=options.frames,
            guidance=options.guidance,
            steps=options.steps,
            expand=not options.as_is,
            progress=True,
        )
        path = video.save(options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"read as: {video.captions[0]}\n{path} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
