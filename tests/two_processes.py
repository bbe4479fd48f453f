"""Two real processes that form a group of gloo, started once and used by many tests."""

import multiprocessing
import traceback
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch
from torch import distributed

SIZE, SECONDS = 2, 300


class Pair:
    """Two processes that call a function of a test module at the same time.

    Args:
        folder: an empty folder in which they meet.
    """

    def __init__(self, folder):
        self._folder, self._numbers = Path(folder), count()
        self._processes = []

    def __call__(self, function, *args, **kwargs):
        """Return what each process returned for `function(rank, size, ...)`; raise what one of them raised."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        answers = [self._answer(pipe) for pipe in self._pipes]
        wrong = [str(answer) for good, answer in answers if not good]
        if wrong:
            self.close()  # a process that failed may have left the other in the middle of something
            raise AssertionError("\n".join(wrong))
        return [answer for _, answer in answers]

    def close(self):
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self):
        context = multiprocessing.get_context("spawn")
        store, self._pipes = str(self._folder / f"store-{next(self._numbers)}"), []
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _answer(self, pipe):
        try:
            return pipe.recv() if pipe.poll(SECONDS) else (False, f"no answer in {SECONDS} s")
        except EOFError:
            return False, "the process ended"


def _serve(rank, store, pipe):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS / 2)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=timeout)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(rank, SIZE, *args, **kwargs)
        except BaseException:
            answer = False, f"rank {rank}: {traceback.format_exc()}"
        pipe.send(answer)
