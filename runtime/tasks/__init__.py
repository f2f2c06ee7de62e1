"""What a model's outputs mean, as the library that made the model says it: labels, entities, answers, embeddings."""
