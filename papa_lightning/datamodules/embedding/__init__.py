"""Data of embedding tasks: texts to embed, and what their embeddings are judged by.

``texts`` has the base, ``similarity`` pairs with a score by people, ``retrieval`` queries with relevant passages.
"""
