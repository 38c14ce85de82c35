"""The service: a queue before the pipeline, an API that OpenAI's clients know, and a page.

request -> `orders` -> `line` (who is next) -> `engine` (asyncio) -> `painter` (one thread, which owns the pipelines)
"""
