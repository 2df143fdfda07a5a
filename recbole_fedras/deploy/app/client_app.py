"""What a SuperNode without a worker would run: it says how to start one that has."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp


def refuse(message: Message, context: Context) -> Message:
    """Answer nothing: the node's data and models are its worker's."""
    raise RuntimeError("start this node by `recbole-fedras deploy shard`")


app = ClientApp()
app.train()(refuse)
app.query()(refuse)
