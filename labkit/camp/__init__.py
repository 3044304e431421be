"""A room of learners: archives for machines without network, one server for all, the board of who has solved what.

| module  | what it does                                                                             |
|---------|------------------------------------------------------------------------------------------|
| command | `labkit camp bundle`, `learners`, `serve`, `board`                                       |
| bundle  | one archive for each platform: wheels, course, web pages, install scripts, checksums     |
| roster  | who may log in: names and salted hashes of passphrases; slips to hand out                |
| hub     | JupyterHub's authenticator and spawner for the roster: own accounts, limits, private homes |
| serve   | makes accounts and folders, then becomes JupyterHub                                      |
| desk    | what runs as the learner: brings lessons up to date, never over their work; the limits   |
| board   | summaries that learners share, as a table                                                |
"""
