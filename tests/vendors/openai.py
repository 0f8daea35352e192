"""OpenAI as a whole, at one address as in life: language models and speech recognition, each with faults of its own."""

from aiohttp import web

from vendors.faults import StandIn
from vendors.openai_llm import OpenAiLlmStandIn
from vendors.openai_stt import OpenAiSttStandIn


class OpenAiStandIn(StandIn):
    """`async with OpenAiStandIn(key="sk-test") as vendor`; its base address is `vendor.url + "/v1"`."""

    def __init__(self, key: str = "sk-test") -> None:
        super().__init__()
        self.llm, self.stt = OpenAiLlmStandIn(key=key), OpenAiSttStandIn(key=key)

    def routes(self) -> list[web.RouteDef]:
        return [route for part in (self.llm, self.stt) for route in part.routes() if "/__" not in route.path]
