# The study in a container: `make report` by default, `make test` on request. ARTIFACT.md has the commands.
FROM python:3.11-slim-bookworm

RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc g++ make \
 && rm -rf /var/lib/apt/lists/*

# The user's number is that of whoever owns the mounted folder.
ARG UID=1000
RUN useradd --create-home --uid "$UID" fusegap \
 && install --directory --owner=fusegap --group=fusegap /home/fusegap/study
USER fusegap
WORKDIR /home/fusegap/study

ENV PIP_NO_CACHE_DIR=1
COPY --chown=fusegap:fusegap . .
RUN make .venv/ready

CMD ["make", "report"]
