"""The public corpus of certificate chains, judged by our trust layer: as it says, or as docs/security.md argues.

The corpus is about the Web: names of hosts are checked by the TLS layer here, so its cases about names alone are left
out. CRLs are given only by its CRL cases; the others are judged as if every CRL were there and empty.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import crypto

from certs.errors import CertsError
from certs.trust import verify_offline

DATA = Path(os.environ.get("DGIS_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


@lru_cache
def corpus() -> list[dict[str, Any]]:
    path = DATA / "tls" / "limbo.json"
    if not path.exists():
        pytest.skip("the corpus of certificate chains is not here (DGIS_TEST_DATA/tls/limbo.json)")
    cases: list[dict[str, Any]] = json.loads(path.read_text())["testcases"]
    return cases


def about_names(case: dict[str, Any]) -> bool:
    """Whether a case turns on the host name that was asked for."""
    return bool(re.search(r"::san::|::cn::|wildcard|::no-san", case["id"]))


def verdict(case: dict[str, Any]) -> str:
    """Judge a case: "" when the chain is taken, else why not."""
    flags = crypto.X509StoreFlags
    store = crypto.X509Store()
    store.set_flags(flags.ALLOW_PROXY_CERTS | (flags.CRL_CHECK if case.get("crls") else 0))
    try:
        for pem in case["trusted_certs"]:
            store.add_cert(crypto.X509.from_cryptography(x509.load_pem_x509_certificate(pem.encode())))
        for pem in case.get("crls") or ():
            store.add_crl(x509.load_pem_x509_crl(pem.encode()))
        moment = case["validation_time"] and datetime.fromisoformat(case["validation_time"])
        store.set_time(moment or datetime(2024, 6, 1, tzinfo=UTC))
        chain = "\n".join([case["peer_certificate"], *case["untrusted_intermediates"]])
        purpose = "client" if case["validation_kind"] == "CLIENT" else "server"
        verify_offline(store, chain.encode(), purpose=purpose)
    except CertsError as error:
        return str(error)
    except (ValueError, TypeError, crypto.Error) as error:
        return f"{type(error).__name__}"
    return ""


def argued() -> dict[str, str]:
    """The differences that the page argues: by id, the kind of difference."""
    return dict(re.findall(r"^\| `([a-z0-9:-]+)` \| (stricter|laxer) \|", SECURITY.read_text(), re.MULTILINE))


def test_every_client_case_is_decided_as_the_corpus_says() -> None:
    cases = [case for case in corpus() if case["validation_kind"] == "CLIENT"]
    wrong = {case["id"] for case in cases if (verdict(case) == "") != (case["expected_result"] == "SUCCESS")}
    assert len(cases) == 10 and wrong <= set(argued())


def test_server_cases_differ_only_as_the_page_argues() -> None:
    found = {}
    for case in corpus():
        if not about_names(case):
            why = verdict(case)
            if (why == "") != (case["expected_result"] == "SUCCESS"):
                found[case["id"]] = "stricter" if why else "laxer"
    assert found == argued()
