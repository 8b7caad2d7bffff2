"""The HTTP service: Jina's and OpenAI's embedding APIs on one bundle.

`lanes` and `forming` keep the towers busy and fair, `pictures` and `fetch` take in what strangers send.
"""
