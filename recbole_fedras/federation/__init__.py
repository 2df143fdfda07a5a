"""The federated round: sampling, local training, aggregation, server and replicas."""
