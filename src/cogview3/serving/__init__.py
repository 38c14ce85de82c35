"""The service: a queue before the pipeline, OpenAI's images API, and a web page.

request -> `orders` -> `line` (who is next) -> `engine` (asyncio) -> `painter` (one thread, which owns the pipelines)
"""
