"""Creates or updates the work pool `msrrn` and the automations of automations.yaml on the server of PREFECT_API_URL.

    python infra/prefect/apply.py

Run again, it changes nothing. Automations are known by name; one that is not in the file any more is left alone.
"""

import asyncio
from pathlib import Path
from typing import Final

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.workers.process import ProcessWorker

AUTOMATIONS: Final = Path(__file__).with_name("automations.yaml")
POOL: Final = "msrrn"


def read_automations(file: Path = AUTOMATIONS) -> list[AutomationCore]:
    """Raises pydantic.ValidationError where one is not as Prefect wants it."""
    return [AutomationCore.model_validate(each) for each in yaml.safe_load(file.read_text("utf-8"))["automations"]]


async def apply(client: PrefectClient, automations: list[AutomationCore]) -> None:
    template = ProcessWorker.get_default_base_job_template()
    await client.create_work_pool(
        WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template), overwrite=True
    )
    print(f"work pool {POOL}")
    for automation in automations:
        known = await client.read_automations_by_name(automation.name)
        if known:
            await client.update_automation(known[0].id, automation)
        else:
            await client.create_automation(automation)
        print(f"automation {automation.name!r} {'updated' if known else 'created'}")


async def main() -> None:
    async with get_client() as client:
        await apply(client, read_automations())


if __name__ == "__main__":
    asyncio.run(main())
