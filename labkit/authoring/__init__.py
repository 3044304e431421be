"""What an author's command line runs. No notebook imports anything from here.

| module           | what it does                                                                            |
|------------------|-----------------------------------------------------------------------------------------|
| source           | the grammar of a lesson's source and its reader; regions: solution parts in a cell      |
| build            | sources to notebooks; its parts: notebook, frame, install, leaks, wording and wrapping  |
| stamp            | the repository's address in badges and install cells                                    |
| commands         | `labkit build` and `labkit stamp`                                                       |
| colab            | run on Colab before labkit is installed: what to install there                          |
| lint             | `labkit lint`: code, text, files and lessons                                            |
| run              | `labkit run`: lessons executed in processes of their own, judged and reported           |
| study            | `labkit study`: the recorded experiments behind the claims                              |
| readings         | intervals and means in the texts that a record has outgrown, for `labkit study check`   |
| site             | `labkit site`: the course as web pages, from executed lessons                           |
"""
