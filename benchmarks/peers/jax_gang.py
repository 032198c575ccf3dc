"""One rank of a data-parallel training by unmodified JAX: a linear model, its batch divided among the ranks.

The ranks find each other by the variables of their gang. Each prints its first and its last loss, which are
those of the whole batch and so equal on all ranks.
"""

import os

import jax
import jax.numpy as jnp
import numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ROWS_PER_RANK = 256
FEATURES = 32
STEPS = 50
RATE = 0.05

rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", ranks, rank)

mesh = Mesh(numpy.array(jax.devices()), ("rank",))
divided, whole = NamedSharding(mesh, PartitionSpec("rank")), NamedSharding(mesh, PartitionSpec())

random = numpy.random.default_rng(7)
inputs = random.normal(size=(ROWS_PER_RANK * ranks, FEATURES)).astype(numpy.float32)
targets = inputs @ random.normal(size=FEATURES).astype(numpy.float32)
own = slice(ROWS_PER_RANK * rank, ROWS_PER_RANK * (rank + 1))
batch = jax.make_array_from_process_local_data(divided, inputs[own])
labels = jax.make_array_from_process_local_data(divided, targets[own])
weights = jax.make_array_from_process_local_data(whole, numpy.zeros(FEATURES, numpy.float32))


def loss_of(weights, batch, labels):
    return jnp.mean((batch @ weights - labels) ** 2)


@jax.jit
def step(weights, batch, labels):
    loss, gradient = jax.value_and_grad(loss_of)(weights, batch, labels)
    return weights - RATE * gradient, loss


losses = []
for _ in range(STEPS):
    weights, loss = step(weights, batch, labels)
    losses.append(float(loss))
print(f"losses {losses[0]:.6f} {losses[-1]:.6f} over {len(jax.devices())} devices", flush=True)
jax.distributed.shutdown()
